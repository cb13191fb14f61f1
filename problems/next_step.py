"""How far the coming step on each sample of a batch would lower the upper loss."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamprm.errors import UserError
from dreamprm.hypergradients import Point, indirect_gradient
from dreamprm.problems.stateless import StatelessLoss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreamprm.problems.reweighting import ReweightedProblem

DIRECTION = "upper gradient"  # v = ∇_φ M in the upper problem's memory


@torch.enable_grad()
def alignments(lower: ReweightedProblem, batch: Any, losses: Tensor) -> Tensor | None:
    """⟨∇ℓ_i(φ), v⟩ of every sample of a batch, [b]; None before the first v.

    By the product of the lower problem's method: L(φ, ε) = mean of ε_i ℓ_i(φ) has the cross
    derivatives ∇ℓ_i / b.

    Raises:
        UserError: the method does more than that one product.
    """
    upper = lower.weighting
    vector = upper._memory.get(DIRECTION)
    if vector is None:
        return None
    method = lower._method
    if method.uses_curvature or method.needs:
        raise UserError(
            f"hypergradient method {method.name!r} of problem {lower.name!r} is not for weights of "
            "the coming step, which take one inner product: take identity"
        )
    assert lower._bits is not None
    loss = StatelessLoss(lower, lower, upper, [batch])

    def weighted(phi: list[Tensor], epsilon: list[Tensor]) -> Tensor:
        with _given(lower, epsilon[0]):
            return loss.of(phi, [])

    point = Point(
        lower_loss=weighted,
        lower=list(lower.trainable_parameters()),
        upper=[torch.zeros_like(losses.detach())],
        bits=lower._bits,
        memory=lower._memory,
    )
    (found,) = indirect_gradient(method, point, vector, lower.config.options)
    return -len(losses) * found.detach()


@contextmanager
def _given(lower: ReweightedProblem, weights: Tensor) -> Iterator[None]:
    lower.given = weights
    try:
        yield
    finally:
        lower.given = None
