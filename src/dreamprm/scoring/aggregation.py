"""From step scores to one score per solution: the same functions in the meta loss and in use.

Every aggregation gives the log-odds of an aggregated probability, so that solutions whose scores
are all but 0 or 1 still differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreamprm.errors import UserError, unknown_name

Aggregation = Callable[[Sequence[float]], float]
VOTE = "vote"


def mean_logit(logits: Tensor, mask: Tensor) -> Tensor:
    """The mean of the step logits of each solution; its sigmoid is DreamPRM's aggregated score.

    Args:
        logits: of the step scores, [b, S].
        mask: which of them are steps, [b, S]; every row has at least one.

    Returns:
        [b].
    """
    return (logits * mask).sum(-1) / mask.sum(-1)


def mean_probability(logits: Tensor, mask: Tensor) -> Tensor:
    """The mean of the step scores of each solution, in (0, 1); arguments as of ``mean_logit``."""
    return mean_logit(logits.sigmoid(), mask)


def aggregate(step_logits: Sequence[float], aggregation: str = "mean_logit") -> float:
    """The aggregated score of one solution, in float64.

    Args:
        step_logits: of its steps.
        aggregation: a key of ``AGGREGATIONS``.

    Returns:
        the log-odds of the aggregated score; −∞ for a solution without steps.

    Raises:
        UserError: there is no such aggregation.
        FloatingPointError: a logit is NaN or infinite.
    """
    function = aggregation_named(aggregation)
    for number, logit in enumerate(step_logits, start=1):
        if not math.isfinite(logit):
            raise FloatingPointError(f"the logit of step {number} is {logit}, expected a number")
    return function(step_logits) if step_logits else -math.inf


def aggregation_named(name: str) -> Aggregation:
    """An aggregation by its name.

    Raises:
        UserError: there is none.
    """
    if name not in AGGREGATIONS:
        raise UserError(unknown_name("aggregation", name, AGGREGATIONS))
    return AGGREGATIONS[name]


def probability(log_odds: float) -> float:
    """The probability of log-odds: σ, in float64; 0 of −∞."""
    return probabilities([log_odds])[0]


def probabilities(log_odds: Sequence[float]) -> list[float]:
    """σ of each, in float64."""
    return torch.tensor(log_odds, dtype=torch.float64).sigmoid().tolist()


def _mean_logit(logits: Sequence[float]) -> float:
    """DreamPRM's (arXiv 2505.20241): the mean logit."""
    return math.fsum(logits) / len(logits)


def _mean(logits: Sequence[float]) -> float:
    """The mean probability, as VisualPRM's: log Σ σ(l) − log Σ σ(−l)."""
    right = [_log_sigmoid(logit) for logit in logits]
    wrong = [_log_sigmoid(-logit) for logit in logits]
    return _log_sum_exp(right) - _log_sum_exp(wrong)


def _product(logits: Sequence[float]) -> float:
    """The product of the probabilities, as in Let's Verify Step by Step (arXiv 2305.20050)."""
    log_product = math.fsum(_log_sigmoid(logit) for logit in logits)
    rest = -math.expm1(log_product)
    if rest == 0.0:  # all but certain: 1 − Π σ(l) = Σ exp(−l) to first order
        return -_log_sum_exp([-logit for logit in logits])
    return log_product - math.log(rest)


def _last(logits: Sequence[float]) -> float:
    """The last step's."""
    return logits[-1]


def _log_sigmoid(logit: float) -> float:
    return -math.log1p(math.exp(-logit)) if logit >= 0 else logit - math.log1p(math.exp(logit))


def _log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


AGGREGATIONS: dict[str, Aggregation] = {
    "mean_logit": _mean_logit,
    "mean": _mean,
    "min": min,
    "product": _product,
    "last": _last,
    "max": max,
}


def split_rule(name: str) -> tuple[bool, str]:
    """A selection rule as (is it a vote, by which aggregation).

    A rule is an aggregation, ``vote`` (of mean logits), or ``vote+AGGREGATION``.

    Raises:
        UserError: it is none of these.
    """
    first, plus, rest = name.partition("+")
    vote = first == VOTE
    aggregation = (rest if plus else "mean_logit") if vote else name
    if aggregation not in AGGREGATIONS:
        votes = [f"{VOTE}+{known}" for known in AGGREGATIONS]
        raise UserError(unknown_name("aggregation", name, [*AGGREGATIONS, VOTE], votes))
    return vote, aggregation
