"""TRL's stepwise supervision: ``prompt``, ``completions`` (the steps) and ``labels``.

Schema: huggingface.co/docs/trl/dataset_formats#stepwise-supervision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import Format, hard_label
from dreamprm.data.adapters.reading import Rows, one_of
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

_LABELS = {True: 1.0, False: 0.0}


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row; the file's name is the domain, the number of the row the id.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    rows = Rows(path)
    for where, row in rows:
        texts = need(row, "completions", list, where)
        values = need(row, "labels", list, where)
        if len(texts) != len(values):
            raise UserError(f"{where}: has {len(values)} labels of {len(texts)} completions")
        found = [one_of(where, "a label", value, _LABELS) for value in values]
        yield rows.solution(
            where,
            texts,
            found,
            question=need(row, "prompt", str, where),
        )


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory."""
    for row in rows:
        yield {
            "prompt": row.question,
            "completions": list(row.steps),
            "labels": [hard_label(label) for label in row.step_labels or () if label is not None],
        }


TRL = Format(
    "trl",
    read,
    lambda row: {"prompt", "completions", "labels"} <= set(row),
    write,
    cannot_hold=frozenset(
        {"id", "domain", "images", "labels between 0 and 1", "outcome", "answer", "extra columns"}
    ),
    needs=frozenset({"a label for every step"}),
)
