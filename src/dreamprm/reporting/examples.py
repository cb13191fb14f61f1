"""Scored solutions worth looking at: where the pick was clearly right, and where clearly wrong.

They are kept in the run directory with their images, so that a report needs neither model nor data.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamprm.data.images import read_image
from dreamprm.data.rows import need, read_rows
from dreamprm.data.trajectory import SelectionQuestion
from dreamprm.errors import UserError
from dreamprm.scoring.aggregation import aggregate
from dreamprm.writing import write_whole

OF_EACH_KIND = 3  # right picks and wrong ones
QUESTION_LENGTH, STEP_LENGTH, STEPS, IMAGES = 1500, 800, 40, 2
IMAGE_SIDE = 320  # pixels of its longer side


@dataclass(frozen=True)
class ScoredSolution:
    """One solution of an example.

    Attributes:
        steps: the first ones of it, shortened where they are long.
        scores: of these steps, in (0, 1).
        labels: their step labels in [0, 1], None where there is none.
        aggregated: the score of the whole solution, by the mean logit of all steps.
        correct: whether its answer is right.
        answer: its final answer, where it has one.
        steps_left_out: how many more it has.
    """

    steps: list[str]
    scores: list[float]
    labels: list[float | None]
    aggregated: float
    correct: bool
    answer: str | None = None
    steps_left_out: int = 0


@dataclass(frozen=True)
class Example:
    """A question with the solution that the model scored highest, and the one it scored lowest.

    Attributes:
        id, question: of the question.
        images: as data URLs, small.
        candidates: how many solutions there were.
        best, worst: by aggregated score; ``worst`` is None where there was one solution only.
    """

    id: str
    question: str
    images: list[str]
    candidates: int
    best: ScoredSolution
    worst: ScoredSolution | None = None


def choose_examples(
    questions: Sequence[SelectionQuestion],
    step_logits: Sequence[Sequence[Sequence[float]]],
    of_each_kind: int = OF_EACH_KIND,
) -> list[Example]:
    """The questions with the clearest right picks, then those with the clearest wrong ones.

    How clear is by the margin between the picked solution and the best one of the other outcome.
    A question whose solutions are all wrong (or all right) says nothing of the pick and is left
    out, unless it has one solution only: then the margin is to a score of one half.

    Args:
        questions: with their candidates.
        step_logits: one number per step, of every candidate, of every question.
        of_each_kind: how many right and how many wrong picks.
    """
    margins: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for index, (question, logits) in enumerate(zip(questions, step_logits, strict=True)):
        scores = [aggregate(steps) for steps in logits]
        best = scores.index(max(scores))
        right = bool(question.candidates[best].correct)
        others = [
            score
            for score, candidate in zip(scores, question.candidates, strict=True)
            if bool(candidate.correct) != right
        ]
        if not (logits[best] and math.isfinite(scores[best])):
            continue
        if others:
            margins[right].append((max(others) - scores[best], index))
        elif len(scores) == 1:
            margins[right].append((-abs(scores[best]), index))
    chosen = [i for right in (True, False) for _, i in sorted(margins[right])[:of_each_kind]]
    return [_example(questions[i], step_logits[i]) for i in chosen]


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """Writes JSON Lines, whole or not at all."""
    write_whole(path, [json.dumps(asdict(example)) for example in examples])


def read_examples(path: Path) -> list[Example]:
    """Reads what :func:`save_examples` wrote.

    Raises:
        UserError: it is something else; the message names file and line.
    """
    if not path.read_text().strip():
        return []
    examples = []
    for where, row in read_rows(path):
        images = need(row, "images", list, where)
        if not all(isinstance(i, str) and i.startswith("data:image/") for i in images):
            raise UserError(f"{where}: images are no data URLs")
        worst = row.get("worst")
        examples.append(
            Example(
                id=need(row, "id", str, where),
                question=need(row, "question", str, where),
                images=images,
                candidates=need(row, "candidates", int, where),
                best=_read_solution(need(row, "best", dict, where), where),
                worst=None if worst is None else _read_solution(worst, where),
            )
        )
    return examples


def small_image(path: Path, side: int = IMAGE_SIDE) -> str:
    """An image as a data URL, at most ``side`` pixels on its longer side, on white."""
    flat = read_image(path)  # as the model sees it
    flat.thumbnail((side, side))
    encoded = {}
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        flat.save(buffer, format=kind, optimize=True, quality=82)
        encoded[kind] = buffer.getvalue()
    kind, data = min(encoded.items(), key=lambda item: len(item[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _example(question: SelectionQuestion, logits: Sequence[Sequence[float]]) -> Example:
    scores = [aggregate(steps) for steps in logits]
    best = scores.index(max(scores))
    # A solution without steps has no score to show.
    worst = min((i for i in range(len(scores)) if logits[i]), key=scores.__getitem__)
    return Example(
        id=question.id,
        question=_cut(question.question, QUESTION_LENGTH),
        images=[small_image(path) for path in question.images[:IMAGES]],
        candidates=len(scores),
        best=_solution(question, best, logits[best]),
        worst=_solution(question, worst, logits[worst]) if worst != best else None,
    )


def _solution(question: SelectionQuestion, index: int, logits: Sequence[float]) -> ScoredSolution:
    candidate = question.candidates[index]
    labels = candidate.step_labels or [None] * len(logits)
    return ScoredSolution(
        steps=[_cut(step, STEP_LENGTH) for step in candidate.steps[:STEPS]],
        scores=[_sigmoid(logit) for logit in logits[:STEPS]],
        labels=list(labels[:STEPS]),
        aggregated=_sigmoid(aggregate(logits)),
        correct=bool(candidate.correct),
        answer=None if candidate.answer is None else _cut(candidate.answer, STEP_LENGTH),
        steps_left_out=max(0, len(candidate.steps) - STEPS),
    )


def _sigmoid(logit: float) -> float:
    return 0.5 * (1 + math.tanh(logit / 2))


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return f"{text[:length]}… ({len(text) - length:,} more characters)"


def _read_solution(row: Any, where: str) -> ScoredSolution:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a solution is {type(row).__name__}, expected an object")
    steps, scores, labels = (need(row, key, list, where) for key in ("steps", "scores", "labels"))
    if not len(steps) == len(scores) == len(labels):
        raise UserError(f"{where}: found {len(steps)} steps and {len(scores)} scores")
    numbers = [*scores, *(label for label in labels if label is not None)]
    if not all(isinstance(step, str) for step in steps) or not all(
        isinstance(number, int | float) for number in numbers
    ):
        raise UserError(f"{where}: steps are no texts, or scores and labels no numbers")
    answer = row.get("answer")
    return ScoredSolution(
        steps=steps,
        scores=scores,
        labels=labels,
        aggregated=need(row, "aggregated", (int, float), where),
        correct=need(row, "correct", bool, where),
        answer=None if answer is None else str(answer),
        steps_left_out=int(row.get("steps_left_out", 0)),
    )
