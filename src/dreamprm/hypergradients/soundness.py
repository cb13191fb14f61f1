"""Whether the products are right on this machine's torch: each on each operation of the zoo.

The oracle are central differences of fourth order of first gradients, in float64; and first
gradients are held against such differences of the loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dreamprm.errors import UserError
from dreamprm.hypergradients.checkpointing import recomputing_alike
from dreamprm.hypergradients.gradients import lower_gradient, upper_gradient
from dreamprm.hypergradients.interface import Loss
from dreamprm.hypergradients.operations import Function, Operation, drawn
from dreamprm.hypergradients.products import PRODUCTS
from dreamprm.hypergradients.randomness import same_randomness
from dreamprm.hypergradients.vectors import Tensors, norm

GRADIENT = "gradient"
RIGHT, REFUSED, WRONG, APART = "right", "refused", "WRONG", "apart"
STEP = 1e-4  # of the oracle: its error is of the order STEP⁴ + 1e-16 / STEP, 1e-12
# For what is exact, rounding times the condition of these operations; the differences' own error
# is the square of their step, 4e-3 at most in float32.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}


@dataclass(frozen=True)
class Verdict:
    """Of one product, or of the first gradient, on one operation.

    Attributes:
        operation, product, dtype: of what; the product is ``gradient`` for the first gradient.
        status: ``right``, ``refused``, ``WRONG``, or ``apart``: another answer by its nature.
        error: relative, the worse one of those of ``cross`` and ``hvp``; None if refused.
        reason: of a refusal, or of being apart.
    """

    operation: str
    product: str
    dtype: str
    status: str
    error: float | None = None
    reason: str = ""


def weighted(function: Function) -> Loss:
    """L(φ, α) = Σ_k softplus(α_k) · (the squares of every third output, and the outputs)."""

    def loss(phi: Tensors, alpha: Tensors) -> Tensor:
        out = function(*phi)
        out = torch.view_as_real(out) if out.is_complex() else out
        out = out.reshape(-1)
        pieces = out * drawn((len(out),), out, seed=9) + out.square() / 2
        weights = torch.nn.functional.softplus(alpha[0])
        return (weights[torch.arange(len(out), device=out.device) % 3] * pieces).sum()

    return loss


def judge(
    zoo: Iterable[Operation], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> Iterator[Verdict]:
    """The verdicts on the first gradient and on every product, operation by operation.

    Args:
        zoo: see zoo.py.
        dtype: float64 or float32, in which the products run.
        device: where they and the oracle run.
    """
    exact, like = (torch.zeros((), dtype=t, device=device) for t in (torch.float64, dtype))
    for operation in zoo:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of operations with a slow kernel and such
            at = _point(operation, exact)
            loss, twin = (
                same_randomness(weighted(function), at[0])
                for function in (operation.function, operation.derived_as or operation.function)
            )
            try:
                oracle = _oracle(twin, *at)
            except RuntimeError as error:  # not on this device, say
                yield Verdict(operation.name, GRADIENT, str(dtype), REFUSED, None, _reason(error))
                continue
            for product in (GRADIENT, *PRODUCTS):
                point = _point(operation, like)
                yield _verdict(operation, product, recomputing_alike(loss), point, oracle)


def _verdict(
    operation: Operation,
    product: str,
    loss: Loss,
    point: tuple[Tensors, Tensors, Tensors],
    oracle: tuple[Tensor, Tensors, Tensors],
) -> Verdict:
    phi, alpha, q = point
    slope, cross, hvp = oracle
    row = partial(Verdict, operation.name, product, str(phi[0].dtype))
    if product in operation.apart:
        return row(APART, None, operation.apart[product])
    try:
        if product == GRADIENT:
            gradient = lower_gradient(loss, phi, alpha)
            along = [(g * v).sum().reshape(1) for g, v in zip(gradient, q, strict=True)]
            error = _error([torch.cat(along).sum()], [slope])
        else:
            applied = PRODUCTS[product](loss, phi, alpha)
            error = max(_error(applied.cross(q), cross), _error(applied.hvp(q), hvp))
    except (RuntimeError, UserError) as refusal:
        return row(REFUSED, None, _reason(refusal.__cause__ or refusal))
    return row(RIGHT if error < TOLERANCE[phi[0].dtype] else WRONG, error)  # NaN is wrong


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _point(operation: Operation, like: Tensor) -> tuple[Tensors, Tensors, Tensors]:
    """φ, α and q."""
    phi = operation.point(like)
    along = [drawn(tuple(p.shape), like, 50 + i) for i, p in enumerate(phi)]
    return phi, [drawn((3,), like, 8)], along


def _oracle(
    loss: Loss, phi: Tensors, alpha: Tensors, q: Tensors
) -> tuple[Tensor, Tensors, Tensors]:
    """The derivatives along q of L, ∇_α L and ∇_φ L."""

    def along(function: Callable[[Tensors], Tensors]) -> Tensors:
        behind2, behind, ahead, ahead2 = (
            function([torch.add(p, v, alpha=k * STEP) for p, v in zip(phi, q, strict=True)])
            for k in (-2, -1, 1, 2)
        )
        near = [a - b for a, b in zip(ahead, behind, strict=True)]
        far = [a - b for a, b in zip(ahead2, behind2, strict=True)]
        return [(8 * a - b) / (12 * STEP) for a, b in zip(near, far, strict=True)]

    (slope,) = along(lambda p: [loss(p, alpha)])
    cross = along(lambda p: upper_gradient(loss, p, alpha))
    return slope, cross, along(lambda p: lower_gradient(loss, p, alpha))


def _error(found: Tensors, right: Tensors) -> float:
    """Relative; absolute where the right answer is zero, of a function of order 1."""
    off = norm([(a - b).double() for a, b in zip(found, right, strict=True)])
    return float(off / max(norm(right), 1e-3))
