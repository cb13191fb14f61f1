"""Math-Shepherd (arXiv 2312.08935): question and steps in one text, with a tag after every step.

``input`` has the Cyrillic tag "ки" at the end of every step, ``label`` the same text with "+" or
"-" in the place of each tag, ``task`` the data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import Format, hard_label
from dreamprm.data.adapters.reading import Rows, checked, without_blank_steps
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

_TAG = "ки"
_LABELS = {"+": 1.0, "-": 0.0}
_FIRST_STEP = re.compile(r"(?<!\S)Step 1:")
_ANSWER = re.compile(r"The answer is:[ \t]*(.+?)[ \t]*$")


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row, its task being the domain, the number of the row the id.

    A row whose text has no "Step 1:", where the question would end, is left out. The answer is
    what follows "The answer is:" in the last step, which keeps it.

    Raises:
        UserError: a row lacks a key, or ``label`` is not ``input`` with its tags replaced.
    """
    rows = Rows(path)
    for where, row in rows:
        *parts, rest = need(row, "input", str, where).split(_TAG)
        found = _labels(parts, rest, need(row, "label", str, where), where)
        if rest.strip():
            parts, found = [*parts, rest], [*found, None]
        first = _FIRST_STEP.search(parts[0]) if parts else None
        if first is None:
            rows.note("have no 'Step 1:' before the first tag and are left out")
            continue
        question, parts[0] = parts[0][: first.start()], parts[0][first.start() :]
        steps, labels = without_blank_steps(rows, [part.strip() for part in parts], found)
        answer = _ANSWER.search(steps[-1])
        yield (
            where,
            checked(
                where,
                path.parent,
                id=str(rows.total),
                domain=need(row, "task", str, where) or path.stem,
                question=question.strip(),
                steps=steps,
                step_labels=labels,
                answer=answer[1] if answer else None,
            ),
        )


def _labels(parts: list[str], rest: str, label: str, where: str) -> list[float | None]:
    """What stands in ``label`` after each part of ``input``."""
    found: list[float | None] = []
    end = 0
    for number, part in enumerate(parts, start=1):
        end += len(part)
        sign = label[end : end + 1]
        if label[end - len(part) : end] != part or sign not in _LABELS:
            raise UserError(
                f"{where}: label differs from input before tag {number}, or has {sign!r} in its "
                "place, expected the same text with + or - in the place of every tag"
            )
        found.append(_LABELS[sign])
        end += 1
    if label[end:] != rest:
        raise UserError(f"{where}: label differs from input after the last tag")
    return found


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory; a first step without "Step 1:" gets it, so that it can be told."""
    for row in rows:
        first, *others = row.steps
        if not first.startswith("Step 1:"):
            first = f"Step 1: {first}"
        signs = ["+" if hard_label(p) else "-" for p in row.step_labels or () if p is not None]
        tagged = [
            "\n".join(f"{step} {end}" for step, end in zip([first, *others], ends, strict=True))
            for ends in ([_TAG] * len(row.steps), signs)
        ]
        yield {
            "input": f"{row.question} {tagged[0]}",
            "label": f"{row.question} {tagged[1]}",
            "task": row.domain,
        }


def _recognise(row: Any) -> bool:
    return {"input", "label"} <= set(row) and isinstance(row["input"], str) and _TAG in row["input"]


MATH_SHEPHERD = Format(
    "math-shepherd",
    read,
    _recognise,
    write,
    cannot_hold=frozenset(
        {
            "id",
            "images",
            "labels between 0 and 1",
            "a first step that does not begin with 'Step 1:'",
            "white space around steps",
            "outcome",
            "answer",
            "extra columns",
        }
    ),
    needs=frozenset({"a label for every step", "a text without 'ки'"}),
)
