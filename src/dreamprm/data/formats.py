"""Reading and writing files of trajectories; every error names file and line."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from dreamprm.data.adapters import FORMATS, Format
from dreamprm.data.adapters.candidates import read_questions
from dreamprm.data.rows import read_rows
from dreamprm.data.trajectory import SelectionQuestion, Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.writing import whole_file, writing

log = logging.getLogger("dreamprm")


class Row(Protocol):
    """What a row of any file of questions or solutions has; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Unique within the file."""

    @property
    def images(self) -> tuple[Path, ...]:
        """Files that belong to the question."""


Item = TypeVar("Item", bound=Row)

IMAGE_CHOICES = ("require", "skip_missing", "ignore")
AUTO = "auto"
ROWS_TO_GUESS_FROM = 20


def load_trajectories(
    path: str | Path, format: str = "canonical", images: str = "require"
) -> list[Trajectory]:
    """Reads a file of trajectories; see :func:`iterate_trajectories`."""
    return list(iterate_trajectories(path, format, images))


def iterate_trajectories(
    path: str | Path, format: str = "canonical", images: str = "require"
) -> Iterator[Trajectory]:
    """Reads a file of trajectories one by one.

    Args:
        path: ``.jsonl``, ``.json`` (one array) or ``.parquet``; for ``math-vision`` a folder.
        format: a key of ``FORMATS``, or ``"auto"``: told by the first rows.
        images: ``"require"``: a missing image file is an error; ``"skip_missing"``: it is left
            out, and counted in a warning; ``"ignore"``: no images, text only.

    Raises:
        UserError: the file is missing, empty or wrong, or its format cannot be told; the message
            names file and line.
    """
    path = Path(path)
    return checked_rows(path, find_format(format, path).read(path), images)


def load_questions(
    path: str | Path, images: str = "require", judged: bool = True
) -> list[SelectionQuestion]:
    """Reads a file of questions with candidates; see :func:`iterate_trajectories`.

    Args:
        path: of the file.
        images: what a missing image means.
        judged: whether it must be known of every candidate if it is right.

    Raises:
        UserError: the file is missing, empty or wrong.
    """
    rows = read_questions(Path(path))
    return list(checked_rows(Path(path), _judged(rows) if judged else rows, images))


def _judged(
    rows: Iterable[tuple[str, SelectionQuestion]],
) -> Iterator[tuple[str, SelectionQuestion]]:
    for where, question in rows:
        for number, candidate in enumerate(question.candidates, start=1):
            if candidate.correct is None:
                raise UserError(f"{where}: candidate {number} has no 'correct': true or false")
        yield where, question


def find_format(name: str, path: Path) -> Format:
    """The format of that name; for ``"auto"``, the one that a file's first rows are of.

    Raises:
        UserError: there is no such format, or the rows are of none or of several.
    """
    if name != AUTO:
        if name not in FORMATS:
            raise UserError(unknown_name("format", name, [*FORMATS, AUTO]))
        return FORMATS[name]
    if path.is_dir():
        known = [format for format in FORMATS.values() if format.folder]
        rows: list[dict[str, Any]] = []
    else:
        rows = [row for _, row in itertools.islice(read_rows(path), ROWS_TO_GUESS_FROM)]
        if not rows:
            raise UserError(f"{path} holds no rows")
        known = [f for f in FORMATS.values() if all(f.recognise(row) for row in rows)]
    if len(known) == 1:
        return known[0]
    keys = f" (keys of the first row: {', '.join(sorted(rows[0]))})" if rows else ""
    could_be = ", ".join(format.name for format in known) or "none of those that are told by keys"
    raise UserError(
        f"cannot tell the format of {path}{keys}: it could be {could_be}; name one of "
        f"{', '.join(FORMATS)}"
    )


def save_trajectories(path: str | Path, trajectories: Sequence[Trajectory]) -> None:
    """Writes canonical JSON Lines, whole or not at all; images relative to the file's folder."""
    _save(Path(path), trajectories)


def save_questions(path: str | Path, questions: Sequence[SelectionQuestion]) -> None:
    """Writes canonical JSON Lines, whole or not at all; images relative to the file's folder."""
    _save(Path(path), questions)


def save_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON Lines, or as one array where the name ends in ``.json``.

    The file is there whole or not at all, whatever ends the writing.

    Raises:
        UserError: it cannot be written.
    """
    array = path.suffix == ".json"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(b"[" if array else b"")
        for number, row in enumerate(rows):
            file.write(b",\n" if array and number else b"\n" if array else b"")
            file.write(json.dumps(row, ensure_ascii=False).encode() + (b"" if array else b"\n"))
        file.write(b"\n]\n" if array else b"")


def _save(path: Path, items: Sequence[Trajectory] | Sequence[SelectionQuestion]) -> None:
    save_rows(path, (item.to_record(path.parent) for item in items))


def checked_rows(path: Path, rows: Iterable[tuple[str, Item]], images: str) -> Iterator[Item]:
    """What holds for every format: ids are unique, and images are there or accounted for."""
    seen: dict[str, str] = {}
    incomplete = 0
    first = None
    for where, item in rows:
        if item.id in seen:
            raise UserError(f"{where}: id {item.id!r} stands at {seen[item.id]} already")
        seen[item.id] = where
        item, missing = with_images(item, where, images)
        if missing:
            incomplete += 1
            first = first or missing[0]
        yield item
    if not seen:
        raise UserError(f"{path} holds no rows")
    if incomplete:
        log.warning(
            "%s: images of %d of %d rows are missing and left out, the first is %s",
            path, incomplete, len(seen), first,
        )  # fmt: skip


def with_images(item: Item, where: str, images: str) -> tuple[Item, list[Path]]:
    """A row with the images that it is to have, and those that are missing.

    Args:
        item: the row.
        where: it stands.
        images: as of :func:`load_trajectories`.

    Raises:
        UserError: ``images`` is ``"require"``, and one is missing.
    """
    if images not in IMAGE_CHOICES:
        raise UserError(unknown_name("choice of images", images, IMAGE_CHOICES))
    if not item.images:
        return item, []
    if images == "ignore":
        return replace(item, images=()), []
    missing = [image for image in item.images if not os.path.isfile(image)]
    if missing and images == "require":
        folder = " (a folder)" if missing[0].is_dir() else ""
        raise UserError(
            f"{where}: there is no image {missing[0]}{folder}; images=skip_missing leaves missing "
            "ones out, images=ignore all (in a config data.images, else --images)"
        )
    if missing:
        item = replace(item, images=tuple(i for i in item.images if i not in missing))
    return item, missing
