"""Solvers: how q ≈ H⁻¹ v is found, given only products with H.

Each is a function ``solver(hvp, v, **options) -> q``. H = ∂²L/∂φ² is symmetric; ``hvp(q)`` gives
H q; v, q and H q are lists of tensors of the same shapes. Keyword-only arguments are the options of
the methods built on it; ``preconditioner`` alone is not the user's to give: it is the lower
optimizer's (see updates.py).
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Callable

import torch

from dreamprm.errors import UserError, need_at_least, need_positive, need_whole
from dreamprm.hypergradients.finite import is_finite
from dreamprm.hypergradients.vectors import Linear, Tensors, add, dot, flatten, norm, shaped_as

POWER_ITERATIONS = 5  # of alpha=auto
ROUNDING = 0.02  # of an eigenvalue in the span of the last terms


class CurvatureWarning(UserWarning):
    """The Hessian is not positive definite where a solver needs it to be."""


def identity(hvp: Linear, v: Tensors) -> Tensors:
    """q = v: the Hessian is taken for the identity (Luketina et al. 2016, arXiv 1511.06727)."""
    return v


def neumann(
    hvp: Linear,
    v: Tensors,
    *,
    iterations: int = 3,
    alpha: float | str = 0.1,
    damping: float = 0.0,
) -> Tensors:
    """q = α Σ_{j=0}^{K} (I − α(H + ρI))^j v (Lorraine et al. 2020, arXiv 1911.02590, algorithm 3).

    Converges to (H + ρI)⁻¹ v where H + ρI is positive definite and 0 < α < 2/λ_max(H + ρI). It
    warns where the terms show that it does not.

    Args:
        hvp: product with H.
        v: right-hand side.
        iterations: K, at least 0; one Hessian-vector product each.
        alpha: step size α, more than 0; or ``"auto"``: 1/λ with λ ≤ λ_max by ``POWER_ITERATIONS``
            power iterations from v, one more Hessian-vector product each.
        damping: ρ, at least 0.

    Raises:
        UserError: an option is out of its range, or the series diverges beyond all numbers.

    Warns:
        CurvatureWarning: the series diverges.
    """
    need_whole("iterations", iterations, at_least=0)
    if isinstance(alpha, str) and alpha != "auto":
        raise UserError(f"alpha is {alpha!r}, expected more than 0, or 'auto'")
    if alpha != "auto":
        need_positive("alpha", alpha)
    need_at_least("damping", damping, 0)
    damped = _damped(hvp, damping)
    size = float(alpha) if alpha != "auto" else 1 / (_largest_curvature(damped, v) or 1.0)
    term, total = v, v
    moments = [dot(v, v)]
    for _ in range(iterations):
        before, term = term, add(term, damped(term), -size)
        total = add(total, term)
        moments += [dot(before, term), dot(term, term)]
    if not is_finite(total):
        raise UserError(
            f"the Neumann series is not finite after iterations={iterations} with alpha={alpha}: "
            "alpha must be less than 2 over the largest eigenvalue of the Hessian"
        )
    _warn_of_divergence(moments, size)
    return [size * s for s in total]


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
    if rate < 1 + ROUNDING:
        return
    if along @ grams[1] @ along < 0:
        reason = (
            f"the largest eigenvalue of the Hessian is at least {(1 + rate) / size:.1g}: alpha "
            f"must be less than {2 * size / (1 + rate):.1g}; alpha=auto finds one"
        )
    else:
        reason = (
            "the Hessian has a negative eigenvalue, which no alpha mends: more damping does, or a "
            "solver that does not need H"
        )
    message = f"the Neumann series diverges with alpha={size:.2g}: {reason}"
    warnings.warn(message, CurvatureWarning, stacklevel=3)


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


def cg(
    hvp: Linear,
    v: Tensors,
    *,
    iterations: int = 10,
    tolerance: float = 1e-10,
    damping: float = 0.0,
) -> Tensors:
    """Solves (H + ρI) q = v by conjugate gradient (Rajeswaran et al. 2019, arXiv 1909.04630).

    For H + ρI positive definite; with n variables exact after n iterations, but for rounding.
    Starts at q = 0. Where a direction of curvature pᵀ(H + ρI)p ≤ 0 shows, it warns and stops with
    the q that it has, which is v where the very first direction, v, is one.

    Args:
        hvp: product with H.
        v: right-hand side.
        iterations: at most this many, at least 1; one Hessian-vector product each.
        tolerance: stops where ‖v − (H + ρI)q‖ ≤ tolerance · ‖v‖; at least 0.
        damping: ρ, at least 0.

    Raises:
        UserError: an option is out of its range.
        FloatingPointError: a product with H is NaN.

    Warns:
        CurvatureWarning: the curvature is not positive.
    """
    need_whole("iterations", iterations, at_least=1)
    need_at_least("tolerance", tolerance, 0)
    need_at_least("damping", damping, 0)
    damped = _damped(hvp, damping)
    solution = [torch.zeros_like(x) for x in v]
    residual, direction = v, v
    square = dot(residual, residual)
    enough = tolerance**2 * square
    for iteration in range(iterations):
        if square <= enough:
            break
        product = damped(direction)
        curvature = dot(direction, product)
        if math.isnan(curvature):
            raise FloatingPointError("conjugate gradient got a product with H that is not finite")
        if curvature <= 0:
            length = dot(direction, direction)
            warnings.warn(
                f"conjugate gradient met a direction p in iteration {iteration + 1} along which "
                f"the lower loss does not curve upwards (pᵀHp / pᵀp = {curvature / length:.2g}) "
                "and stopped there: damping has to grow by more than that",
                CurvatureWarning,
                stacklevel=2,
            )
            return v if iteration == 0 else solution
        step = square / curvature
        solution = add(solution, direction, step)
        residual = add(residual, product, -step)
        square, before = dot(residual, residual), square
        direction = add(residual, direction, square / before)
    return solution


def nystrom(
    hvp: Linear, v: Tensors, *, rank: int = 10, damping: float = 0.01, seed: int = 0
) -> Tensors:
    """q = (H_k + ρI)⁻¹ v with H_k = H_K H_KK⁺ H_Kᵀ (Hataya & Yamada 2023, arXiv 2302.10126).

    H_K are the columns of H at k variables drawn without replacement, H_KK its rows at them. With
    H_K = QR and S = R H_KK⁺ Rᵀ, q = Q (S + ρI)⁻¹ Qᵀv + (v − QQᵀv)/ρ: the paper's equation 6 by
    orthogonal factors, which stays accurate where ρ is small. H need not be positive definite.

    Args:
        hvp: product with H.
        v: right-hand side.
        rank: k, from 1 to the number of variables; one Hessian-vector product and three copies
            of the parameters each.
        damping: ρ, more than 0.
        seed: of the draw of the variables, the same at every call.

    Raises:
        UserError: an option is out of its range.
    """
    need_whole("rank", rank, at_least=1)
    need_positive("damping", damping)
    need_whole("seed", seed, at_least=0)
    count = sum(x.numel() for x in v)
    if rank > count:
        raise UserError(f"rank is {rank}, expected at most the {count} variables that there are")
    # Python's sample needs memory for the rank only, torch's randperm for every variable.
    chosen = torch.tensor(random.Random(seed).sample(range(count), rank), device=v[0].device)
    columns = []
    for index in chosen:
        unit = torch.zeros_like(flatten(v))
        unit[index] = 1
        columns.append(flatten(hvp(shaped_as(unit, v))))
    basis, triangle = torch.linalg.qr(torch.stack(columns, dim=1))
    block = torch.stack([column[chosen] for column in columns], dim=1)
    inner = triangle @ torch.linalg.pinv((block + block.T) / 2, hermitian=True) @ triangle.T
    eye = torch.eye(rank, dtype=inner.dtype, device=inner.device)
    right = flatten(v)
    within = basis.T @ right
    # The part of v outside the columns' span, projected out twice: it is divided by a small ρ.
    outside = right - basis @ within
    outside = outside - basis @ (basis.T @ outside)
    solved = torch.linalg.solve((inner + inner.T) / 2 + damping * eye, within)
    return shaped_as(basis @ solved + outside / damping, v)


def sama(hvp: Linear, v: Tensors, *, preconditioner: Linear) -> Tensors:
    """q = Dᵀ v, D = ∂u/∂g of the lower optimizer's update φ ← φ − u(g) (arXiv 2310.05674, eq. 4).

    Choe et al. 2023: for Adam, D is diagonal and known from its state, learning rate included; for
    plain gradient descent D = learning rate · I.

    Args:
        hvp: not used.
        v: right-hand side.
        preconditioner: product with Dᵀ; see ``dreamprm.hypergradients.updates.preconditioner``.
    """
    return preconditioner(v)


SOLVERS: dict[str, Callable[..., Tensors]] = {
    "identity": identity,
    "neumann": neumann,
    "cg": cg,
    "nystrom": nystrom,
    "sama": sama,
}


def _damped(hvp: Linear, damping: float) -> Linear:
    return (lambda q: add(hvp(q), q, damping)) if damping else hvp
