"""ProcessBench (github.com/QwenLM/ProcessBench): solutions with the first step that is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import Format, hard_label
from dreamprm.data.adapters.reading import Rows
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

_NUMBERED = re.compile(r"(.+)-\d+")


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row; the domain is what stands before the number in its id.

    ``label`` is the index of the first wrong step, from 0, or −1: the steps before it are labelled
    1, it 0, and those after it, which nobody judged, have no label. ``generator`` is left out.

    Raises:
        UserError: a row lacks a key, or ``label`` is not the index of a step or −1.
    """
    rows = Rows(path)
    for where, row in rows:
        name = need(row, "id", str, where)
        texts = need(row, "steps", list, where)
        error = need(row, "label", int, where)
        if not -1 <= error < len(texts):
            raise UserError(
                f"{where}: label is {error}, expected -1 or the index of one of {len(texts)} steps"
            )
        right = len(texts) if error == -1 else error
        found: list[float | None] = [1.0] * right
        if error != -1:
            found += [0.0, *[None] * (len(texts) - right - 1)]
        numbered = _NUMBERED.fullmatch(name)
        yield rows.solution(
            where,
            texts,
            found,
            id=name,
            domain=numbered[1] if numbered else path.stem,
            question=need(row, "problem", str, where),
            outcome=row.get("final_answer_correct"),
        )


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory; ``final_answer_correct`` is null where the outcome is unknown."""
    for row in rows:
        wrong = (
            i for i, p in enumerate(row.step_labels or ()) if p is not None and not hard_label(p)
        )
        yield {
            "id": row.id,
            "generator": "unknown",
            "problem": row.question,
            "steps": list(row.steps),
            "final_answer_correct": row.outcome,
            "label": next(wrong, -1),
        }


PROCESSBENCH = Format(
    "processbench",
    read,
    lambda row: {"id", "problem", "steps", "label"} <= set(row),
    write,
    cannot_hold=frozenset(
        {
            "domain",
            "images",
            "labels between 0 and 1",
            "labels after the first error",
            "answer",
            "extra columns",
        }
    ),
    needs=frozenset({"a label for every step up to the first error"}),
)
