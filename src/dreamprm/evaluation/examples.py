"""A few solutions to look at: the best and the worst by a model, and what it was mistaken in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamprm.data.trajectory import SelectionQuestion, Trajectory
from dreamprm.scoring.aggregation import aggregate, probabilities, probability


def example_solutions(
    rows: Sequence[Trajectory], logits: Sequence[Sequence[float]], aggregation: str, count: int
) -> dict[str, list[dict[str, Any]]]:
    """The solutions with the highest and with the lowest aggregated score.

    Args:
        rows: the solutions; those without steps are passed over.
        logits: of every step of each.
        aggregation: a key of ``AGGREGATIONS``.
        count: how many of either kind.
    """
    log_odds = {i: aggregate(steps, aggregation) for i, steps in enumerate(logits) if steps}
    order = sorted(log_odds, key=lambda i: -log_odds[i])
    kinds = {"best": order[:count], "worst": order[::-1][:count]}
    return {
        kind: [_example(rows[i], logits[i], aggregation) for i in chosen]
        for kind, chosen in kinds.items()
    }


def example_mistakes(
    questions: Sequence[SelectionQuestion],
    logits: Sequence[Sequence[Sequence[float]]],
    aggregation: str,
    count: int,
) -> list[dict[str, Any]]:
    """Wrong solutions that were picked before right ones, by the largest lead.

    Each has under ``"right"`` the best-scored right solution of its question.
    """
    found = []
    for question, row in zip(questions, logits, strict=True):
        log_odds = [aggregate(steps, aggregation) for steps in row]
        by_score = sorted(range(len(row)), key=lambda i: -log_odds[i])
        right = next((i for i in by_score if question.candidates[i].correct), None)
        if right is None or right == by_score[0] or not row[by_score[0]]:
            continue
        wrong = by_score[0]
        lead = probability(log_odds[wrong]) - probability(log_odds[right])
        found.append((lead, question, wrong, right, row))
    found.sort(key=lambda item: -item[0])
    return [
        _example(question.trajectories()[wrong], row[wrong], aggregation)
        | {"right": _example(question.trajectories()[right], row[right], aggregation)}
        for _, question, wrong, right, row in found[:count]
    ]


def _example(row: Trajectory, logits: Sequence[float], aggregation: str) -> dict[str, Any]:
    labels = row.step_labels or (None,) * len(row.steps)
    steps = zip(row.steps, probabilities(logits), labels, strict=True)
    return {
        "id": row.id,
        "domain": row.domain,
        "question": row.question,
        "images": [path.resolve().as_posix() for path in row.images],
        "steps": [{"text": text, "score": score, "label": p} for text, score, p in steps],
        "aggregated": probability(aggregate(logits, aggregation)),
        "answer": row.answer,
        "correct": row.outcome,
    }
