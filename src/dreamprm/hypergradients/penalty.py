"""First-order penalty methods: no second derivatives at all."""

from __future__ import annotations

import warnings

import torch

from dreamprm.errors import UserError, need_positive, need_whole
from dreamprm.hypergradients.finite import is_finite
from dreamprm.hypergradients.gradients import lower_gradient, upper_gradient
from dreamprm.hypergradients.interface import UPPER_LOSS, Point
from dreamprm.hypergradients.precision import PrecisionWarning, mantissa_bits
from dreamprm.hypergradients.vectors import Tensors


def f2sa(
    point: Point,
    vector: Tensors,
    *,
    iterations: int = 10,
    alpha: float = 0.1,
    penalty: float = 10.0,
) -> Tensors:
    """λ (∂L/∂α(y) − ∂L/∂α(z)), z minimising L and y minimising L + M/λ (F2SA, arXiv 2301.10945).

    Kwon et al. 2023, algorithm 1; ScaleBiO (Pan et al. 2024, arXiv 2406.19976) is its form for
    large models. Both z and y start at φ and take K gradient steps on the current batch:

        z ← z − α ∇_φ L(z)        y ← y − α (∇_φ L(y) + ∇_φ M(y) / λ)

    At the exact minima the answer is off by O(1/λ). Rounding is multiplied by λ.

    Args:
        point: where; needs the upper loss.
        vector: v = ∇_φ M(φ), of y's first step.
        iterations: K, at least 1; two gradients each, and one more of M after the first.
        alpha: step size α, more than 0.
        penalty: λ, more than 0.

    Raises:
        UserError: an option is out of its range, the upper loss is missing, or the steps diverge.

    Warns:
        PrecisionWarning: the lower loss runs in less than fp32, whose rounding λ multiplies.
    """
    need_whole("iterations", iterations, at_least=1)
    need_positive("alpha", alpha)
    need_positive("penalty", penalty)
    if point.upper_loss is None:
        raise UserError(f"f2sa needs {UPPER_LOSS}, which is not at hand between these problems")
    if point.bits < mantissa_bits(torch.float32):
        warnings.warn(
            "f2sa's difference of two gradients of a loss that runs in less than fp32 can be wrong "
            "by tens of percent: identity, which takes forward mode there, is not",
            PrecisionWarning,
            stacklevel=2,
        )
    of_lower = lower_gradient(point.lower_loss, point.lower, point.upper)
    z = _step(point.lower, of_lower, alpha)
    y = _step(z, vector, alpha / penalty)
    for _ in range(iterations - 1):
        of_upper = lower_gradient(point.upper_loss, y, point.upper)
        y = _step(y, lower_gradient(point.lower_loss, y, point.upper), alpha)
        y = _step(y, of_upper, alpha / penalty)
        z = _step(z, lower_gradient(point.lower_loss, z, point.upper), alpha)
    if not is_finite([*y, *z]):
        raise UserError(
            f"f2sa is not finite after iterations={iterations} with alpha={alpha}: "
            "alpha must be less than 2 over the largest eigenvalue of the Hessian"
        )
    at_y = upper_gradient(point.lower_loss, y, point.upper)
    at_z = upper_gradient(point.lower_loss, z, point.upper)
    return [penalty * (a - b) for a, b in zip(at_y, at_z, strict=True)]


@torch.no_grad()
def _step(point: Tensors, gradient: Tensors, size: float) -> Tensors:
    return [torch.sub(p, g, alpha=size) for p, g in zip(point, gradient, strict=True)]
