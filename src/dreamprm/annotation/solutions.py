"""One solution from nothing to labels, as requests and what comes of their replies."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from dreamprm.annotation.config import AnnotationConfig
from dreamprm.annotation.generators import Request
from dreamprm.annotation.grading import grade
from dreamprm.annotation.prompt import cut, final_answer
from dreamprm.annotation.questions import Question
from dreamprm.annotation.search import SEARCHES, Counts
from dreamprm.data.trajectory import Trajectory

Texts = list[tuple[str, ...]]  # for each request that was yielded, its samples
Course = Generator[list[Request], Texts, "Annotated"]


@dataclass(frozen=True)
class Annotated:
    """One solution with its labels.

    Attributes:
        trajectory: the canonical record.
        counts: of each prefix that was completed, right and all completions.
        answers: of each of those prefixes, the final answers of its completions.
    """

    trajectory: Trajectory
    counts: Counts
    answers: dict[int, list[str | None]]

    def count_record(self) -> dict[str, Any]:
        """The line of the file of counts."""
        return {
            "id": self.trajectory.id,
            "prefixes": [
                {"steps": prefix, "right": right, "total": total, "answers": self.answers[prefix]}
                for prefix, (right, total) in sorted(self.counts.items())
            ],
        }


def course(
    question: Question, chain: int, config: AnnotationConfig, samples_per_request: int
) -> Course:
    """Annotates one solution of a question.

    Args:
        question: that is solved.
        chain: the number of the solution.
        config: of the annotation.
        samples_per_request: completions that one request may ask for.

    Yields:
        Requests; is sent the texts of each.

    Returns:
        The solution with its labels.
    """
    (((solution,),)) = yield [Request(question, chain, 0, "", range(1))]
    steps, prefixes = cut(solution)
    answer = final_answer(solution)
    outcome = _right(answer, question, config)
    search = SEARCHES[config.search](len(steps), outcome if answer is not None else None)
    counts: Counts = {}
    answers: dict[int, list[str | None]] = {}
    try:
        asked = next(search)
        while True:
            requests = [
                Request(question, chain, prefix, prefixes[prefix - 1], samples)
                for prefix in asked
                for samples in _portions(config.completions, samples_per_request)
            ]
            texts = yield requests
            found: Counts = {}
            for prefix in asked:
                whole = [
                    final_answer(request.given + text)
                    for request, of_one in zip(requests, texts, strict=True)
                    for text in of_one
                    if request.prefix == prefix
                ]
                right = sum(_right(item, question, config) for item in whole)
                answers[prefix], found[prefix] = whole, (right, len(whole))
            counts |= found
            asked = search.send(found)
    except StopIteration as end:
        labels = end.value.labels
    trajectory = Trajectory(
        id=f"{question.id}/{chain}",
        domain=question.domain,
        question=question.text,
        steps=tuple(steps),
        images=question.images,
        step_labels=tuple(labels),
        outcome=outcome,
        answer=answer,
    )
    return Annotated(trajectory, counts, answers)


def _portions(samples: int, most: int) -> Sequence[range]:
    return [range(start, min(start + most, samples)) for start in range(0, samples, most)]


def _right(answer: str | None, question: Question, config: AnnotationConfig) -> bool:
    grading = config.grading
    rule = grading.rules.get(question.domain, grading.rule)
    return grade(
        answer, question.answer, question.options, rule, grading.tolerance, grading.timeout
    )
