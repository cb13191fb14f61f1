"""Questions with candidate solutions, for best-of-N; as trajectories, one per candidate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.reading import Rows
from dreamprm.data.steps import stripped_steps
from dreamprm.data.trajectory import SelectionQuestion, Trajectory, group_candidates
from dreamprm.errors import UserError


def read_questions(path: Path) -> Iterator[tuple[str, SelectionQuestion]]:
    """One question per row.

    A candidate has its ``steps``, or the whole text of its ``response``, which is split.

    Raises:
        UserError: a key is missing or unknown, or a value is wrong.
    """
    for where, row in Rows(path):
        yield where, _question(row, path.parent, where)


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per candidate, ``id/index`` by name, its correctness being the outcome.

    The right answer of the question is left out: a trajectory has its own answer only.

    Raises:
        UserError: a key is missing or unknown, or a value is wrong.
    """
    rows = Rows(path)
    for where, row in rows:
        question = _question(row, path.parent, where)
        if question.answer is not None:
            rows.note("have the right answer, which is left out")
        for trajectory in question.trajectories():
            yield where, trajectory


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per question, its solutions being the candidates; all are held in memory.

    Raises:
        UserError: an image is outside the folder.
    """
    for question in group_candidates(list(rows)):
        yield question.to_record(folder)


def _question(row: Mapping[str, Any], folder: Path, where: str) -> SelectionQuestion:
    found = row.get("candidates")
    if isinstance(found, list):
        row = {**row, "candidates": [_split(candidate, where) for candidate in found]}
    try:
        return SelectionQuestion.from_record(row, folder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _split(candidate: Any, where: str) -> Any:
    if not isinstance(candidate, dict) or "response" not in candidate or "steps" in candidate:
        return candidate
    rest = dict(candidate)
    response = rest.pop("response")
    if not isinstance(response, str):
        raise UserError(f"{where}: response is {response!r}, expected text")
    return {**rest, "steps": stripped_steps(response)}


CANDIDATES = Format(
    "candidates",
    read,
    lambda row: {"id", "question", "candidates"} <= set(row),
    write,
    cannot_hold=frozenset({"id", "extra columns"}),
    needs=frozenset({"an outcome"}),
)
