"""The canonical format: one solution a row, under the names of ``Trajectory``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import format_of_rows
from dreamprm.data.adapters.reading import checked
from dreamprm.data.trajectory import Trajectory


def parse(row: dict[str, Any], where: str, path: Path) -> Trajectory:
    """The row as it is.

    Raises:
        UserError: a key is missing or misspelt, or a value is wrong.
    """
    return checked(where, path.parent, **row)


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory.

    Raises:
        UserError: an image is outside the folder.
    """
    return (row.to_record(folder) for row in rows)


def _recognise(row: Mapping[str, Any]) -> bool:
    return {"id", "question", "steps"} <= set(row) and "candidates" not in row


CANONICAL = format_of_rows("canonical", parse, _recognise, write)
