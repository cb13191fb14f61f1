"""A few solutions to look at: the best and the worst by a model, and what it was mistaken in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dreamprm.data.trajectory import Trajectory
from dreamprm.evaluation.data_sets import DataSet
from dreamprm.evaluation.result import Example, Examples, ExampleStep
from dreamprm.scoring.aggregation import aggregate, probabilities, probability


def choose_examples(
    data: DataSet, model: str, logits: Sequence[list[float]], aggregation: str, count: int
) -> Examples:
    """The best- and the worst-scored solutions, and wrong ones picked before right ones.

    Args:
        data: the solutions; those without steps are passed over.
        model: its name.
        logits: of every step of each.
        aggregation: a key of ``AGGREGATIONS``.
        count: how many of either kind; of mistakes, those with the largest lead.
    """
    log_odds = {i: aggregate(steps, aggregation) for i, steps in enumerate(logits) if steps}
    order = sorted(log_odds, key=lambda i: -log_odds[i])
    best, worst = (
        [_example(data.rows[i], logits[i], aggregation) for i in chosen[:count]]
        for chosen in (order, order[::-1])
    )
    found = []
    for question, row in zip(data.questions, data.by_question(logits), strict=True):
        totals = [aggregate(steps, aggregation) for steps in row]
        by_score = sorted(range(len(row)), key=lambda i: -totals[i])
        right = next((i for i in by_score if question.candidates[i].correct), None)
        if right is None or right == by_score[0] or not row[by_score[0]]:
            continue
        lead = probability(totals[by_score[0]]) - probability(totals[right])
        found.append((lead, question.trajectories(), by_score[0], right, row))
    found.sort(key=lambda item: -item[0])
    mistakes = [
        replace(
            _example(rows[wrong], row[wrong], aggregation),
            right=_example(rows[right], row[right], aggregation),
        )
        for _, rows, wrong, right, row in found[:count]
    ]
    return Examples(data.name, model, best, worst, mistakes)


def _example(row: Trajectory, logits: Sequence[float], aggregation: str) -> Example:
    labels = row.step_labels or (None,) * len(row.steps)
    steps = zip(row.steps, probabilities(logits), labels, strict=True)
    return Example(
        row.id,
        row.domain,
        row.question,
        [path.resolve().as_posix() for path in row.images],
        [ExampleStep(*step) for step in steps],
        probability(aggregate(logits, aggregation)),
        row.answer,
        row.outcome,
    )
