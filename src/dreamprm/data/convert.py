"""From one file format to another, and what is lost on the way."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dreamprm.data.adapters.format import NEEDS, PROPERTIES, Format
from dreamprm.data.formats import AUTO, FORMATS, find_format, iterate_trajectories, save_rows
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.progress import progress_bar

log = logging.getLogger("dreamprm")


def convert_file(
    source: Path,
    out: Path,
    to: str,
    format: str = AUTO,
    images: str = "require",
    domain: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a file of trajectories in another format, whole or not at all.

    One warning says what the reader left out, one what the written format cannot hold, each with
    the number of rows or solutions.

    Args:
        source: a file, or for some formats a folder.
        out: ``.jsonl``, or ``.json`` for one array.
        to: the format to write, a key of ``FORMATS``.
        format: of the source; ``"auto"``: told by its first rows.
        images: what a missing image means, see ``iterate_trajectories``.
        domain: of every row, in the place of its own.
        overwrite: replace a file that is there, once the new one is whole.

    Raises:
        UserError: there is such a file already, the format is only read, the source is wrong, or
            none of its rows can be written.
    """
    written = _writable(to)
    if out.suffix not in (".jsonl", ".json"):
        raise UserError(f"{out} ends in {out.suffix!r}, expected .jsonl or .json")
    if out.is_dir():
        raise UserError(f"{out} is a folder, expected a file to write")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already: --overwrite replaces it")
    read = find_format(format, source)
    if format == AUTO:
        log.info("%s is read as %s", source, read.name)
    rows = iterate_trajectories(source, read.name, images)
    if domain is not None:
        rows = (replace(row, domain=domain) for row in rows)
    with logging_redirect_tqdm(), progress_bar("convert", None, " solutions") as bar:
        counted = _Counted(rows, written, bar)
        assert written.write is not None
        save_rows(out, counted.all_written(written.write(counted, out.parent)))
    counted.say(out)


def _writable(name: str) -> Format:
    names = [format.name for format in FORMATS.values() if format.write is not None]
    if name in FORMATS and name not in names:
        raise UserError(f"{name} is only read; known for writing are {', '.join(names)}")
    if name not in FORMATS:
        raise UserError(unknown_name("format to write", name, names))
    return FORMATS[name]


class _Counted:
    """The trajectories that a format can hold, counting what it loses of them and the others."""

    def __init__(self, rows: Iterable[Trajectory], format: Format, bar: tqdm) -> None:
        self.rows, self.format, self.bar = rows, format, bar
        # Solutions, of which a row may hold several, or a part; and rows of the written file.
        self.total = self.kept = self.written = 0
        self.lost: Counter[str] = Counter()
        self.without: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Trajectory]:
        for row in self.rows:
            self.total += 1
            self.bar.update()
            missing = [need for need in sorted(self.format.needs) if not NEEDS[need](row)]
            self.without.update(missing)
            if missing:
                continue
            self.kept += 1
            self.lost.update(p for p in sorted(self.format.cannot_hold) if PROPERTIES[p](row))
            yield row

    def all_written(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The written rows; refuses in the end if there is none, so that no file comes to be."""
        for record in records:
            self.written += 1
            yield record
        if not self.kept:
            raise UserError(
                f"none of the {self.total} solutions can be written as {self.format.name}, which "
                "needs " + " and ".join(sorted(self.format.needs))
            )

    def say(self, out: Path) -> None:
        """What was written, what was left out, and what was lost."""
        log.info("%s: %d of %d solutions, in %d rows", out, self.kept, self.total, self.written)
        if self.without:
            log.warning(
                "%s: %d of %d solutions are left out; without %s",
                out,
                self.total - self.kept,
                self.total,
                ", ".join(f"{need}: {count}" for need, count in self.without.items()),
            )
        if self.lost:
            log.warning(
                "%s: %s cannot hold %s",
                out,
                self.format.name,
                ", ".join(f"{what} ({count} solutions)" for what, count in self.lost.items()),
            )
