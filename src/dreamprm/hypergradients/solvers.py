"""Solvers: how q ≈ H⁻¹ v is found, given only products with H.

Each is a function ``solver(hvp, v, **options) -> q``. H = ∂²L/∂φ² is symmetric; ``hvp(q)`` gives
H q; v, q and H q are lists of tensors of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from dreamprm.errors import UserError, need_positive

Tensors: TypeAlias = list[Tensor]
HessianVectorProduct: TypeAlias = Callable[[Tensors], Tensors]


def identity(hvp: HessianVectorProduct, v: Tensors) -> Tensors:
    """q = v: the Hessian is taken for the identity (Luketina et al. 2016, arXiv 1511.06727)."""
    return v


def neumann(
    hvp: HessianVectorProduct, v: Tensors, *, iterations: int = 3, alpha: float = 0.1
) -> Tensors:
    """q = α Σ_{j=0}^{K} (I − αH)^j v (Lorraine et al. 2020, arXiv 1911.02590, algorithm 3).

    Converges to H⁻¹ v where H is positive definite and 0 < α < 2/λ_max(H).

    Args:
        hvp: product with H.
        v: right-hand side.
        iterations: K, at least 0; one Hessian-vector product each.
        alpha: step size α, more than 0.

    Raises:
        UserError: an option is out of its range.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise UserError(f"iterations is {iterations!r}, expected a whole number of at least 0")
    need_positive("alpha", alpha)
    term, total = v, v
    for _ in range(iterations):
        term = [t - alpha * h for t, h in zip(term, hvp(term), strict=True)]
        total = [s + t for s, t in zip(total, term, strict=True)]
    return [alpha * s for s in total]


SOLVERS: dict[str, Callable[..., Tensors]] = {"identity": identity, "neumann": neumann}
