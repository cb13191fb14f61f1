"""What long work has done so far, on disk: a killed one continues with what comes next.

A journal is JSON Lines: what the work is of, then one line per piece of it. A line is all or
nothing, so a piece is done or it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamprm.errors import UserError
from dreamprm.writing import UnbufferedFile, write_whole, writing


class Journal:
    """The pieces of a work that are done, in order; a file from the first of them on.

    Args:
        path: of the file; what it holds is continued.
        of: the fingerprint of the work: whatever its result is a function of, by name.

    Attributes:
        pieces: that are done, as they were added.

    Raises:
        UserError: the file is of another work, or cannot be read or written.
    """

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self.path, self.of = path, of
        lines = _whole_lines(path) if path.is_file() else []
        if lines:
            header = json.loads(lines[0])
            changed = [key for key, value in of.items() if header.get(key) != value]
            changed += [key for key in header if key not in of]
            if changed:
                raise UserError(
                    f"{path} and this command differ in {', '.join(changed)}: "
                    "resume with the same, or --overwrite it"
                )
        self.pieces: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]
        # A line that the kill tore goes; its piece is done again.
        self._kept = sum(map(len, lines))
        self._file: UnbufferedFile | None = None

    def add(self, *pieces: dict[str, Any]) -> None:
        """Writes down pieces, a line each."""
        lines = [json.dumps(piece) for piece in pieces]
        with writing(self.path):
            if self._file is None:
                # Kept only with its first line in it: an interruption may come at any place.
                file = UnbufferedFile(self.path, "a")
                file.truncate(self._kept)
                if not self._kept:
                    file.write(json.dumps(self.of).encode() + b"\n")
                self._file = file
            self._file.write("".join(line + "\n" for line in lines).encode())
        self.pieces.extend(pieces)

    def close(self) -> None:
        """Closes the file; :meth:`add` opens it anew."""
        if self._file is not None:
            self._file.close()
            self._kept, self._file = self.path.stat().st_size, None

    def finish(
        self, out: str | Path, lines: Sequence[str], rule: Mapping[str, Any] | None = None
    ) -> None:
        """Writes the output, whole or not at all, and what it is of beside it; deletes the journal.

        Args:
            out: the output file.
            lines: of it.
            rule: what the output is a function of too, but not the pieces.

        Raises:
            UserError: a file cannot be written.
        """
        write_whole(out, lines)
        write_whole(_origin(out), [json.dumps(self.of | dict(rule or {}))])
        self.close()
        self.path.unlink(missing_ok=True)


def is_finished(out: str | Path, of: Mapping[str, Any]) -> bool:
    """Whether an output is there whole, by ``Journal.finish``, and no journal is.

    Raises:
        UserError: it is there, but of another work, or nobody knows of which.
    """
    if not Path(out).exists() or Path(f"{out}.partial").exists():
        return False
    try:
        known = json.loads(_origin(out).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out} is there, but {_origin(out)}, which says what it is of, is not: "
            "--overwrite replaces both"
        ) from error
    changed = sorted(key for key in {*known, *of} if known.get(key) != of.get(key))
    if changed:
        differing = ", ".join(changed)
        raise UserError(f"{out} and this command differ in {differing}: --overwrite replaces it")
    return True


def _origin(out: str | Path) -> Path:
    return Path(f"{out}.origin")


def journal_path(out: str | Path, what: str, resume: bool, overwrite: bool) -> Path:
    """The journal of an output, ``out.partial``; refuses to lose an output that is there.

    Args:
        out: the output file.
        what: is written there, for messages, e.g. ``"a scoring"``.
        resume: whether to continue a work that was interrupted.
        overwrite: whether to replace an output that is there.

    Raises:
        UserError: there is an output or a journal already, or the folder cannot be made.
    """
    path, partial = Path(out), Path(f"{out}.partial")
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file")
    if not (resume or overwrite):
        if partial.exists():
            raise UserError(
                f"{partial} holds {what} that was interrupted: --resume continues it, "
                "--overwrite starts anew"
            )
        if path.exists():
            raise UserError(f"{path} is there already: --overwrite replaces it")
    with writing(path):
        partial.parent.mkdir(parents=True, exist_ok=True)
    return partial


def _whole_lines(path: Path) -> list[bytes]:
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            break
        lines.append(line)
    return lines
