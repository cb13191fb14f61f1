"""Solvers: how q ≈ H⁻¹ v is found, given only products with H.

Each is a function ``solver(hvp, v, **options) -> q``. H = ∂²L/∂φ² is symmetric; ``hvp(q)`` gives
H q; v, q and H q are lists of tensors of the same shapes. Keyword-only arguments are the options of
the methods built on it, but for two that are not the user's to give: ``preconditioner`` is the
lower optimizer's (see updates.py), and ``start`` the q that the last hypergradient of the same path
ended with, None for the first one (see starts.py). A solver leaves the tensors of both as they are.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable

import torch

from dreamprm.errors import UserError, need_at_least, need_positive, need_whole
from dreamprm.hypergradients.descent import CurvatureWarning, neumann, soba
from dreamprm.hypergradients.vectors import Linear, Tensors, add, dot, flatten, shaped_as, shifted


def identity(hvp: Linear, v: Tensors) -> Tensors:
    """q = v: the Hessian is taken for the identity (Luketina et al. 2016, arXiv 1511.06727)."""
    return v


def cg(
    hvp: Linear,
    v: Tensors,
    *,
    iterations: int = 10,
    tolerance: float = 1e-10,
    damping: float = 0.0,
    start: Tensors | None = None,
) -> Tensors:
    """Solves (H + ρI) q = v by conjugate gradient (Rajeswaran et al. 2019, arXiv 1909.04630).

    For H + ρI positive definite; with n variables exact after n iterations, but for rounding.
    Starts at q = 0, or at a start (AmIGO, Arbel & Mairal 2022, arXiv 2111.14580). Where a direction
    of curvature pᵀ(H + ρI)p ≤ 0 shows, it warns and stops with the q that it has, or, where the
    very first direction is one, with v: no start of long ago stays.

    Args:
        hvp: product with H.
        v: right-hand side.
        iterations: at most this many, at least 1; one Hessian-vector product each, and from a
            start one more, for what is left to solve.
        tolerance: stops where ‖v − (H + ρI)q‖ ≤ tolerance · ‖v‖; at least 0.
        damping: ρ, at least 0.
        start: q at the start; None for 0.

    Raises:
        UserError: an option is out of its range.
        FloatingPointError: a product with H is NaN.

    Warns:
        CurvatureWarning: the curvature is not positive.
    """
    need_whole("iterations", iterations, at_least=1)
    need_at_least("tolerance", tolerance, 0)
    need_at_least("damping", damping, 0)
    damped = shifted(hvp, damping)
    solution = [torch.zeros_like(x) for x in v]
    residual, square = v, dot(v, v)
    enough = tolerance**2 * square
    if start is not None:
        solution, residual = start, add(v, damped(start), -1.0)
        square = dot(residual, residual)
    direction = residual
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
    "soba": soba,
    "cg": cg,
    "nystrom": nystrom,
    "sama": sama,
}
