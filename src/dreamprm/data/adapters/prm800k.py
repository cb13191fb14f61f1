"""PRM800K (github.com/openai/prm800k): human ratings of the next steps that a labeller was shown.

A row is one labelling: at every step several completions, each rated −1, 0 or 1, and which of them
(or which text of the labeller's own) the solution went on with.
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

# 0 is "neutral": the papers that use the data count it as right or as wrong, so it is no label.
_LABELS = {1: 1.0, 0: None, -1: 0.0, None: None}

Steps = list[tuple[str, float | None]]


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per completion that the solution did not go on with, and one for the solution.

    Each begins with the steps of the solution before it, with their labels: 1 for the rating 1, 0
    for −1, none for the rating 0 (neutral) and for the labeller's own texts. A solution that only
    ends where such completions begin is not given once more. Left out: flags, times, and
    ``finish_reason``, so that the outcome is unknown.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    rows = Rows(path)
    for where, row in rows:
        question = need(need(row, "question", dict, where), "problem", str, where)
        found = need(need(row, "label", dict, where), "steps", list, where)
        branches = list(_branches(found, where))
        if not branches:
            rows.note("have no step and are left out")
        for number, branch in enumerate(branches):
            yield rows.solution(
                where,
                [s for s, _ in branch],
                [p for _, p in branch],
                id=f"{rows.total}/{number}",
                question=question,
            )


def _branches(found: list[Any], where: str) -> Iterator[Steps]:
    solution: Steps = []
    fresh = False  # whether the solution went on since its last branch
    for number, step in enumerate(found, start=1):
        place = f"{where}: step {number}"
        if not isinstance(step, dict):
            raise UserError(f"{place} is {type(step).__name__}, expected an object")
        completions = [_rated(c, place) for c in step.get("completions") or []]
        chosen = step.get("chosen_completion")
        if chosen is not None and chosen not in range(len(completions)):
            raise UserError(
                f"{place}: chosen_completion is {chosen!r} of {len(completions)} completions"
            )
        for index, completion in enumerate(completions):
            if index != chosen:
                yield [*solution, completion]
                fresh = False
        if chosen is not None:
            solution.append(completions[chosen])
        elif step.get("human_completion") is not None:
            solution.append(_rated(step["human_completion"], place))
        else:
            break
        fresh = True
    if fresh:
        yield solution


def _rated(completion: Any, where: str) -> tuple[str, float | None]:
    if not isinstance(completion, dict):
        raise UserError(f"{where}: a completion is {type(completion).__name__}, expected an object")
    text = need(completion, "text", str, where)
    return text, one_of(where, "rating", completion.get("rating"), _LABELS)


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory, of one completion a step, a step without a label being neutral."""
    for row in rows:
        steps = []
        for text, label in zip(row.steps, row.step_labels or (), strict=True):
            rating = 0 if label is None else 1 if hard_label(label) else -1
            completion = {"text": text, "rating": rating, "flagged": None}
            steps.append(
                {"completions": [completion], "human_completion": None, "chosen_completion": 0}
            )
        yield {"question": {"problem": row.question}, "label": {"steps": steps}}


def _recognise(row: Any) -> bool:
    question, label = row.get("question"), row.get("label")
    return isinstance(question, dict) and "problem" in question and isinstance(label, dict)


PRM800K = Format(
    "prm800k",
    read,
    _recognise,
    write,
    cannot_hold=frozenset(
        {"id", "domain", "images", "labels between 0 and 1", "outcome", "answer", "extra columns"}
    ),
    needs=frozenset({"a labelled step"}),
)
