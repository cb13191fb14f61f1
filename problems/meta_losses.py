"""Meta objectives: what a reward model is held to on the meta set, mostly by outcomes alone.

Each takes ``scores`` s [b], the mean step logit of every solution, or what else its entry
aggregates the steps to; ``outcome`` r [b], 1 right and 0 wrong; and ``question`` [b], equal for
solutions of one question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from dreamprm.errors import UserError, need_positive, unknown_name
from dreamprm.hypergradients.interface import keywords, refuse_unknown_options
from dreamprm.scoring.aggregation import mean_logit, mean_probability

Array = NDArray[np.float64]
_TOLERANCE = 1e-10  # of the fit's gradient, where scores are in units of their largest deviation


def aggregation_mse(scores: Tensor, outcome: Tensor, question: Tensor) -> Tensor:
    """mean (σ(s) − r)², DreamPRM's own (arXiv 2505.20241).

    It sees the level of the scores: the mean of step logits of a solution that fails at its last
    step is still high, so domains with low labels are rewarded whatever their quality.
    """
    return (scores.sigmoid() - outcome).square().mean()


def probability_mse(scores: Tensor, outcome: Tensor, question: Tensor) -> Tensor:
    """mean (p − r)², p the mean probability of a solution's steps (DreamPRM-1.5, arXiv 2509.05542).

    Which is the squared distance to 1 of the mean probability of the token that the outcome asks
    for, "+" or "−". It sees the level of the scores, as ``aggregation_mse``.
    """
    return (scores - outcome).square().mean()


def cross_entropy(scores: Tensor, outcome: Tensor, question: Tensor) -> Tensor:
    """mean −log of the probability that s gives to r."""
    return binary_cross_entropy_with_logits(scores, outcome.to(scores))


def pairwise(scores: Tensor, outcome: Tensor, question: Tensor) -> Tensor:
    """mean over pairs of softplus(−(s_right − s_wrong)); blind to the level of the scores.

    Pairs are taken within a question where at least half of the solutions have one there, else
    within the batch: a few such pairs would speak for all of it.

    Raises:
        ValueError: the batch has only one outcome.
    """
    right, wrong = outcome.bool()[:, None], ~outcome.bool()[None, :]
    pairs = right & wrong
    if not pairs.any():
        raise ValueError("pairwise needs right and wrong solutions in every meta batch")
    within = pairs & (question[:, None] == question[None, :])
    paired = within.any(0) | within.any(1)
    pairs = torch.where(2 * paired.sum() >= len(scores), within, pairs)
    return softplus(scores[None, :] - scores[:, None])[pairs].mean()


def calibrated(scores: Tensor, outcome: Tensor, question: Tensor, *, ridge: float = 0.1) -> Tensor:
    """min over a, c of the mean cross-entropy of σ(a·s + c) + ridge/2 · (a − 1)².

    What is left of the outcome after the best recalibration of this batch. The ridge pulls the
    slope a towards 1 (no recalibration) and leaves the offset c free, so the level of the scores
    is not seen; it belongs to the value, which is thus never above that of equal scores + ridge/2.
    Computed in float64, given in the arithmetic of the scores. Its first and second derivatives
    are those of the minimum.

    Raises:
        ValueError: the batch has only one outcome.
        UserError: the ridge is not more than 0.
        FloatingPointError: a score is NaN or infinite, or the fit does not converge.
    """
    if outcome.min() == outcome.max():
        raise ValueError("calibrated needs right and wrong solutions in every meta batch")
    need_positive("ridge", ridge)
    s, r = scores.double(), outcome.double()
    values = s.detach().cpu().numpy()
    usable = np.abs(values) < 1e300
    if not usable.all():
        row = int(usable.argmin())
        raise FloatingPointError(
            f"meta loss 'calibrated': the score of solution {row + 1} of {len(values)} is "
            f"{values[row]}, expected a number below 1e300"
        )
    # The slope of x in [−1, 1] is of order 1 where that of large scores would be all but 0.
    shift = values.mean()
    unit = max(1.0, float(np.abs(values - shift).max()))
    x = (s - shift) / unit
    slope, offset = _logistic_fit(x.detach().cpu().numpy(), r.cpu().numpy(), unit, ridge)
    z = slope * x + offset
    value = binary_cross_entropy_with_logits(z, r) + ridge / 2 * (slope / unit - 1) ** 2
    # By the envelope theorem the first derivative needs none of the slope and the offset. What they
    # gain by following the scores, ½ gᵀ H⁻¹ g, is 0 here, and gives the second derivative.
    p = z.sigmoid()
    pull = ridge / unit * (slope / unit - 1)
    gradient = torch.stack([((p - r) * x).mean() + pull, (p - r).mean()])
    found = gradient.detach().norm().item()
    if not found <= _TOLERANCE * (1 + ridge):
        raise FloatingPointError(
            f"meta loss 'calibrated': its fit ends at a gradient of {found:.1e}, expected less "
            f"than {_TOLERANCE * (1 + ridge):.1e}; the scores are {values.min():.3g} to "
            f"{values.max():.3g}, ridge is {ridge}"
        )
    with torch.no_grad():
        columns = torch.stack([x, torch.ones_like(x)])
        hessian = (columns * (p * (1 - p))) @ columns.T / len(x)
        hessian[0, 0] += ridge / unit / unit
        # Saturated scores leave the offset free, and g is exact to 1e-17 only.
        inverse = torch.linalg.pinv(hessian, atol=1e-20, rtol=1e-15, hermitian=True)
    return (value - gradient @ inverse @ gradient / 2).to(scores.dtype)


def _logistic_fit(x: Array, r: Array, unit: float, ridge: float) -> tuple[float, float]:
    """Slope A and offset C that minimise cross-entropy of σ(A·x + C) + ridge/2 · (A/unit − 1)².

    Two nested searches for the root of a monotone function, which need no Hessian: that of the
    offset at every slope, that of the slope with its best offset.
    """
    base = float(logit(r.mean()))

    def best_offset(slope: float) -> float:
        low, high = sorted((slope * x.min(), slope * x.max()))
        return _root(
            lambda c: float((expit(slope * x + c) - r).mean()), base - high - 1, base - low + 1
        )

    def gradient(slope: float) -> float:
        residual = expit(slope * x + best_offset(slope)) - r
        return float((residual * x).mean()) + ridge / unit * (slope / unit - 1)

    far = -math.copysign(1.0, gradient(0.0))
    while gradient(far) * far < 0:  # ends: the penalty grows without bound
        far *= 4
    slope = _root(gradient, *sorted((0.0, far)))
    return slope, best_offset(slope)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of an increasing function that is below 0 at ``low`` and above 0 at ``high``."""
    return float(
        brentq(function, low, high, xtol=1e-16, rtol=4 * np.finfo(float).eps, maxiter=1000)
    )


@dataclass(frozen=True)
class MetaLoss:
    """What may stand under ``meta_loss`` in a config.

    Attributes:
        value: the loss; its keyword-only arguments are its options, numbers above 0.
        both_outcomes: whether every batch must have right and wrong solutions.
        aggregate: gives its scores, of step logits and the mask of the steps, both [b, S].
        of_steps: whether it is of the labelled steps of the meta set and not of its solutions: s
            are their logits, r whether their labels are above 1/2, and each is a question of its
            own, since the steps of one solution differ in their place too.
    """

    value: Callable[..., Tensor]
    both_outcomes: bool = False
    aggregate: Callable[[Tensor, Tensor], Tensor] = mean_logit
    of_steps: bool = False


META_LOSSES = {
    "aggregation_mse": MetaLoss(aggregation_mse),
    "probability_mse": MetaLoss(probability_mse, aggregate=mean_probability),
    "pairwise": MetaLoss(pairwise, both_outcomes=True),
    "calibrated": MetaLoss(calibrated, both_outcomes=True),
    "step_pairwise": MetaLoss(pairwise, both_outcomes=True, of_steps=True),
    "step_cross_entropy": MetaLoss(cross_entropy, of_steps=True),
}


def meta_loss_named(name: str, options: Mapping[str, Any]) -> MetaLoss:
    """A meta loss by its name.

    Raises:
        UserError: there is none of that name, or it has no such option, or not such a value.
    """
    if name not in META_LOSSES:
        raise UserError(unknown_name("value of meta_loss", name, META_LOSSES))
    found = META_LOSSES[name]
    refuse_unknown_options(f"meta loss {name!r}", options, keywords(found.value))
    for option, value in options.items():
        need_positive(f"meta_loss_options.{option}", value)
    return found
