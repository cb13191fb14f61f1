"""Reading and writing files of trajectories; every error names file and line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dreamprm.data import dreamprm_format, gsm8k, math_vision
from dreamprm.data.rows import read_rows
from dreamprm.data.trajectory import SelectionQuestion, Trajectory
from dreamprm.errors import UserError, unknown_name

log = logging.getLogger("dreamprm")

Item = TypeVar("Item", Trajectory, SelectionQuestion)

IMAGE_CHOICES = ("require", "skip_missing", "ignore")


def load_trajectories(
    path: str | Path, format: str = "canonical", images: str = "require"
) -> list[Trajectory]:
    """Reads a file of trajectories.

    Args:
        path: ``.jsonl``, ``.json`` (one array) or ``.parquet``; for ``math-vision`` a folder.
        format: a key of ``FORMATS``.
        images: ``"require"``: a missing image file is an error; ``"skip_missing"``: it is left
            out, and counted in a warning; ``"ignore"``: no images, text only.

    Raises:
        UserError: the file is missing, empty or wrong; the message names file and line.
    """
    if format not in FORMATS:
        raise UserError(unknown_name("format", format, FORMATS))
    return _finish(Path(path), list(FORMATS[format](Path(path))), images)


def load_questions(
    path: str | Path, images: str = "require", judged: bool = True
) -> list[SelectionQuestion]:
    """Reads a file of questions with candidates, canonical; see :func:`load_trajectories`.

    Args:
        path: of the file.
        images: what a missing image means.
        judged: whether it must be known of every candidate if it is right.

    Raises:
        UserError: the file is missing, empty or wrong.
    """
    rows = [
        (where, _read(SelectionQuestion, row, Path(path), where))
        for where, row in read_rows(Path(path))
    ]
    for where, question in rows if judged else ():
        for number, candidate in enumerate(question.candidates, start=1):
            if candidate.correct is None:
                raise UserError(f"{where}: candidate {number} has no 'correct': true or false")
    return _finish(Path(path), rows, images)


def save_trajectories(path: str | Path, trajectories: Sequence[Trajectory]) -> None:
    """Writes canonical JSON Lines, whole or not at all; images relative to the file's folder."""
    _save(Path(path), trajectories)


def save_questions(path: str | Path, questions: Sequence[SelectionQuestion]) -> None:
    """Writes canonical JSON Lines, whole or not at all; images relative to the file's folder."""
    _save(Path(path), questions)


def _canonical(path: Path) -> Iterator[tuple[str, Trajectory]]:
    for where, row in read_rows(path):
        yield where, _read(Trajectory, row, path, where)


FORMATS: dict[str, Callable[[Path], Iterator[tuple[str, Trajectory]]]] = {
    "canonical": _canonical,
    "dreamprm-train": dreamprm_format.read_train,
    "dreamprm-meta": dreamprm_format.read_meta,
    "math-vision": math_vision.read,
    "gsm8k-solutions": gsm8k.read,
}


def _read(kind: type[Item], row: dict[str, Any], path: Path, where: str) -> Item:
    try:
        return kind.from_record(row, path.parent)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _finish(path: Path, rows: list[tuple[str, Item]], images: str) -> list[Item]:
    """What holds for every format: ids are unique, and images are there or accounted for."""
    if images not in IMAGE_CHOICES:
        raise UserError(unknown_name("choice of images", images, IMAGE_CHOICES))
    if not rows:
        raise UserError(f"{path} holds no rows")
    seen: dict[str, str] = {}
    items, incomplete = [], []
    for where, item in rows:
        if item.id in seen:
            raise UserError(f"{where}: id {item.id!r} stands at {seen[item.id]} already")
        seen[item.id] = where
        if images == "ignore":
            item = replace(item, images=())
        missing = [image for image in item.images if not image.is_file()]
        if missing and images == "require":
            raise UserError(
                f"{where}: there is no image {missing[0]}; data.images=skip_missing leaves "
                "missing ones out, data.images=ignore all"
            )
        if missing:
            incomplete.append(missing[0])
            item = replace(item, images=tuple(i for i in item.images if i not in missing))
        items.append(item)
    if incomplete:
        log.warning(
            "%s: images of %d of %d rows are missing and left out, the first is %s",
            path, len(incomplete), len(items), incomplete[0],
        )  # fmt: skip
    return items


def _save(path: Path, items: Sequence[Trajectory] | Sequence[SelectionQuestion]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item.to_record(path.parent), ensure_ascii=False) + "\n")
    os.replace(partial, path)
