"""The canonical format: one solution a row, under the names of ``Trajectory``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.reading import checked
from dreamprm.data.rows import read_rows
from dreamprm.data.trajectory import Trajectory


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row.

    Raises:
        UserError: a key is missing or misspelt, or a value is wrong.
    """
    for where, row in read_rows(path):
        yield where, checked(where, path.parent, **row)


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory.

    Raises:
        UserError: an image is outside the folder.
    """
    return (row.to_record(folder) for row in rows)


def _recognise(row: Mapping[str, Any]) -> bool:
    return {"id", "question", "steps"} <= set(row) and "candidates" not in row


CANONICAL = Format("canonical", read, _recognise, write)
