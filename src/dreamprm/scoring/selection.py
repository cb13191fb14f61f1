"""The best of N: which candidate a rule takes, and by how much it leads.

One rule for ties everywhere: the first of equals in the order of the file. A solution without steps
comes after all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dreamprm.data.trajectory import SelectionQuestion
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.scoring_batches import MAX_TOKENS
from dreamprm.scoring.aggregation import aggregate, probabilities, split_rule
from dreamprm.scoring.answers import normalised_answer


@dataclass(frozen=True)
class Selection:
    """What a rule takes of one question's candidates.

    Attributes:
        choice: the index of the candidate.
        margin: how much the choice leads: over the second best candidate's aggregated score or,
            in a vote, over the votes for the second best answer; None where there is no second.
        aggregated: every candidate's aggregated score, a probability.
        votes: in a vote, the sum of the aggregated scores of all candidates with the same answer;
            0 for a candidate without one.
    """

    choice: int
    margin: float | None
    aggregated: list[float]
    votes: list[float] | None = None


def choose(
    step_logits: Sequence[Sequence[float]],
    aggregation: str = "mean_logit",
    answers: Sequence[str | None] | None = None,
) -> Selection:
    """Takes the best of one question's candidates.

    Args:
        step_logits: of every candidate's steps.
        aggregation: a key of ``AGGREGATIONS``, ``vote`` or ``vote+AGGREGATION``.
        answers: of the candidates, for a vote.

    Raises:
        UserError: there is no such rule.
        FloatingPointError: a logit is no number.
    """
    vote, name = split_rule(aggregation)
    log_odds = [aggregate(steps, name) for steps in step_logits]
    scores = probabilities(log_odds)
    if not vote:
        choice = first_best(log_odds)
        others = [score for i, score in enumerate(scores) if i != choice]
        return Selection(choice, scores[choice] - max(others) if others else None, scores)
    groups = answer_groups(answers if answers is not None else [None] * len(scores))
    everyone = np.ones((1, len(scores)), dtype=bool)
    values = vote_values(everyone, np.array(scores), groups)[0]
    votes = [float(v) if g >= 0 else 0.0 for v, g in zip(values, groups, strict=True)]
    choice = int(values.argmax())
    rivals = [v for v, g in zip(votes, groups, strict=True) if g >= 0 and g != groups[choice]]
    margin = votes[choice] - max(rivals) if rivals else None
    return Selection(choice, margin, scores, votes)


def first_best(scores: Sequence[float]) -> int:
    """The index of the highest score, the first of equals."""
    return max(range(len(scores)), key=scores.__getitem__)


def answer_groups(answers: Sequence[str | None]) -> NDArray[np.int64]:
    """One number per answer, equal for equal normalised answers; −1 for none."""
    numbers: dict[str, int] = {}
    keys = [normalised_answer(answer) for answer in answers]
    return np.array([-1 if k is None else numbers.setdefault(k, len(numbers)) for k in keys])


def vote_values(
    members: NDArray[np.bool_], weights: NDArray[np.float64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What every candidate is worth in a vote; the best one is taken, the first of equals.

    Args:
        members: which candidates take part in each of s votes, [s, K].
        weights: of their votes, in [0, 1], [K].
        groups: their answers' numbers, −1 for none, [K].

    Returns:
        [s, K]: the votes for its answer, summed in the order of the file; for a candidate without
        an answer weight − 2, so that it comes after all that have one; −∞ for who takes no part.
    """
    totals = np.zeros((len(members), int(groups.max()) + 1))
    for candidate, group in enumerate(groups):
        if group >= 0:
            totals[:, group] += members[:, candidate] * weights[candidate]
    values = np.where(groups >= 0, totals[:, groups], weights - 2) if totals.size else weights - 2
    return np.where(members, values, -math.inf)


def step_logits_of(
    model: ProcessRewardModel,
    questions: Sequence[SelectionQuestion],
    max_tokens: int = MAX_TOKENS,
    progress: str | None = None,
) -> list[list[list[float]]]:
    """The logit of every step of every candidate of every question.

    Args:
        model: the reward model.
        questions: with their candidates.
        max_tokens: per batch, padding included.
        progress: what the progress bar is called; None shows none.
    """
    groups = [question.trajectories() for question in questions]
    rows = [row for group in groups for row in group]
    logits = iter(model.step_logits(rows, max_tokens, progress))
    return [[next(logits) for _ in group] for group in groups]


def select(
    model: ProcessRewardModel,
    questions: Sequence[SelectionQuestion],
    aggregation: str = "mean_logit",
    max_tokens: int = MAX_TOKENS,
) -> list[Selection]:
    """Takes the best candidate of every question; the same as ``dreamprm select``.

    Args:
        model: the reward model.
        questions: with their candidates; whether those are right need not be known.
        aggregation: a key of ``AGGREGATIONS``, ``vote`` or ``vote+AGGREGATION``.
        max_tokens: per batch, padding included.

    Raises:
        UserError: there is no such rule, or the model cannot read the data.
        FloatingPointError: the model's scores are no numbers.
    """
    split_rule(aggregation)
    return [
        choose(steps, aggregation, [c.answer for c in question.candidates])
        for question, steps in zip(
            questions, step_logits_of(model, questions, max_tokens), strict=True
        )
    ]
