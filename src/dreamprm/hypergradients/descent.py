"""q by gradient descent on qᵀ(H + ρI)q/2 − vᵀq: the Neumann series and SOBA; see solvers.py."""

from __future__ import annotations

import itertools
import math
import warnings

import torch

from dreamprm.errors import UserError, need_at_least, need_positive, need_whole
from dreamprm.hypergradients.finite import is_finite
from dreamprm.hypergradients.vectors import Linear, Tensors, add, dot, norm, shifted

POWER_ITERATIONS = 5  # of alpha=auto
ROUNDING = 0.02  # of an eigenvalue in the span of the last terms


class CurvatureWarning(UserWarning):
    """The Hessian is not positive definite where a solver needs it to be."""


def neumann(
    hvp: Linear,
    v: Tensors,
    *,
    iterations: int = 3,
    alpha: float | str = 0.1,
    damping: float = 0.0,
    start: Tensors | None = None,
) -> Tensors:
    """q = α Σ_{j=0}^{K} (I − α(H + ρI))^j v (Lorraine et al. 2020, arXiv 1911.02590, algorithm 3).

    Converges to (H + ρI)⁻¹ v where H + ρI is positive definite and 0 < α < 2/λ_max(H + ρI). It
    warns where the terms show that it does not.

    From a start q₀ it is the series of what is left to solve, for as many products with H:
    q = q₀ + α Σ_{j=0}^{K−1} (I − α(H + ρI))^j (v − (H + ρI)q₀), K steps of gradient descent on
    qᵀ(H + ρI)q/2 − vᵀq (AmIGO, Arbel & Mairal 2022, arXiv 2111.14580).

    Args:
        hvp: product with H.
        v: right-hand side.
        iterations: K, at least 0, from a start at least 1; one Hessian-vector product each.
        alpha: step size α, more than 0; or ``"auto"``: 1/λ with λ ≤ λ_max by ``POWER_ITERATIONS``
            power iterations from v, one more Hessian-vector product each.
        damping: ρ, at least 0.
        start: q₀.

    Raises:
        UserError: an option is out of its range, or the series diverges beyond all numbers.

    Warns:
        CurvatureWarning: the series diverges.
    """
    need_whole("iterations", iterations, at_least=0 if start is None else 1)
    if isinstance(alpha, str) and alpha != "auto":
        raise UserError(f"alpha is {alpha!r}, expected more than 0, or 'auto'")
    if alpha != "auto":
        need_positive("alpha", alpha)
    need_at_least("damping", damping, 0)
    damped = shifted(hvp, damping)
    size = float(alpha) if alpha != "auto" else 1 / (_largest_curvature(damped, v) or 1.0)
    term, terms = v, iterations
    if start is not None:
        term, terms = _residual(damped, v, start, size, "the Neumann series"), iterations - 1
    total = term
    moments = [dot(term, term)]
    for _ in range(terms):
        before, term = term, add(term, damped(term), -size)
        total = add(total, term)
        moments += [dot(before, term), dot(term, term)]
    if not is_finite(total):
        raise UserError(
            f"the Neumann series is not finite after iterations={iterations} with alpha={alpha}: "
            "alpha must be less than 2 over the largest eigenvalue of the Hessian"
        )
    _warn_of_divergence(moments, size)
    if start is not None:
        return add(start, total, size)
    return [size * s for s in total]


def soba(
    hvp: Linear, v: Tensors, *, alpha: float = 0.1, damping: float = 0.0, start: Tensors | None
) -> Tensors:
    """q ← q − α((H + ρI)q − v), one step a hypergradient (SOBA, Dagréou et al. 2022).

    arXiv 2201.13409, algorithm 1: φ, q and α move together, by one step each. With H and v held, q
    converges to (H + ρI)⁻¹ v where 0 < α < 2/λ_max(H + ρI), by a factor of I − α(H + ρI) a step.
    It starts at q = 0, whose first step is q = αv.

    The order here is φ, then q, then α, each at what those before it have just become: the lower
    steps come first in a run, and the cross product takes the new q. In the paper all three
    directions are of the old (φ, q, α), which is the same but for a delay of one step, and has the
    same fixed points; the first upper step would know nothing of φ. The paper's order makes the
    direction of α an unbiased estimate, with batches drawn independently of φ and q. That is out of
    reach here, whichever q is taken: the batch is that of the last lower step, which φ has seen.

    MA-SOBA (Chen et al. 2023, arXiv 2306.12067) averages the hypergradients besides: SGD as the
    upper optimizer does, with ``momentum`` and ``dampening`` of the same value.

    Args:
        hvp: product with H.
        v: right-hand side.
        alpha: step size α, more than 0; there is no ``"auto"`` as of :func:`neumann`, which would
            take five times the products of a step.
        damping: ρ, at least 0.
        start: q before the step; None for 0, and then no product with H is taken.

    Raises:
        UserError: an option is out of its range, or q has diverged beyond all numbers.

    Warns:
        CurvatureWarning: the steps diverge.
    """
    need_positive("alpha", alpha)
    need_at_least("damping", damping, 0)
    if start is None:
        return [alpha * x for x in v]
    left = _residual(shifted(hvp, damping), v, start, alpha, "SOBA's q")
    q = add(start, left, alpha)
    if not is_finite(q):
        raise UserError(
            f"SOBA's q is not finite after a step with alpha={alpha}: "
            "alpha must be less than 2 over the largest eigenvalue of the Hessian"
        )
    return q


def _residual(damped: Linear, v: Tensors, start: Tensors, size: float, name: str) -> Tensors:
    """v − (H + ρI)q₀ of a start q₀.

    Says where q₀ shows that steps of this size diverge: its own Rayleigh quotient lies between the
    eigenvalues, and steps that diverge turn q₀ to the eigenvector that they diverge along.
    """
    product = damped(start)
    square = dot(start, start)
    curvature = dot(start, product) / square if 0 < square < math.inf else 0.0
    _say_divergence(name, size, abs(1 - size * curvature), curvature < 0)
    return add(v, product, -1.0)


def _warn_of_divergence(moments: list[float], size: float) -> None:
    """Says that a Neumann series diverges, where its own terms show it.

    By Rayleigh and Ritz in the span of the last terms, whose values for B = I − α(H + ρI) lie
    between B's eigenvalues: where one is beyond 1, so is an eigenvalue.

    Args:
        moments: vᵀBʲv for j = 0, 1, …, 2K.
        size: α.
    """
    # Squares overflow long before the terms do.
    finite = list(itertools.takewhile(math.isfinite, moments))
    n = min((len(finite) - 1) // 2, 3)
    last = finite[(len(finite) - 1) // 2 * 2 - 2 * n :]
    # Where the last terms are rounding, they say nothing.
    if not n or last[0] <= 1e-12 * moments[0]:
        return
    grams = [
        torch.tensor([[last[i + j + k] for j in range(n)] for i in range(n)], dtype=torch.float64)
        for k in range(3)
    ]
    values, vectors = torch.linalg.eigh(grams[0] / last[0])
    kept = values > 1e-4 * values[-1]  # inner products in float32 err by 1e-6
    basis = vectors[:, kept] / (last[0] * values[kept]).sqrt()
    squares, within = torch.linalg.eigh(basis.T @ grams[2] @ basis)
    rate, along = math.sqrt(max(float(squares[-1]), 0)), basis @ within[:, -1]
    _say_divergence("the Neumann series", size, rate, bool(along @ grams[1] @ along >= 0))


def _say_divergence(name: str, size: float, rate: float, negative: bool) -> None:
    """Says that steps of gradient descent diverge, where the rate found is beyond 1.

    Args:
        name: what diverges.
        size: α.
        rate: |1 − αλ| of what lies between eigenvalues λ of H + ρI.
        negative: whether that λ is.
    """
    if not rate >= 1 + ROUNDING:
        return
    if negative:
        reason = (
            "the Hessian has a negative eigenvalue, which no alpha mends: more damping does, or a "
            "solver that does not need H"
        )
    else:
        reason = (
            f"the largest eigenvalue of the Hessian is at least {(1 + rate) / size:.1g}: alpha "
            f"must be less than {2 * size / (1 + rate):.1g}; neumann's alpha=auto finds one"
        )
    message = f"{name} diverges with alpha={size:.2g}: {reason}"
    warnings.warn(message, CurvatureWarning, stacklevel=4)


def _largest_curvature(hvp: Linear, v: Tensors) -> float:
    """|λ| of the eigenvalue that power iterations from v find, from below; 0 for v = 0."""
    found, length = 0.0, norm(v)
    direction = v
    for _ in range(POWER_ITERATIONS):
        if length == 0:
            break
        direction = hvp([x / length for x in direction])
        found = length = norm(direction)
    return found
