"""Products: how the second derivatives of the lower loss are applied to a vector.

Each is built once per hypergradient from the lower loss and the point (φ, α), and has

    hvp(q)   = (∂²L/∂φ²) q      shaped as φ
    cross(q) = (∂²L/∂α∂φ)ᵀ q    shaped as α

Keyword-only arguments of a product are options of the methods built on it, but for those of
``CONTEXT``, which are not the user's to give: ``bits`` is the arithmetic's (see precision.py), and
``memory`` the point's (see interface.py).

All evaluations of one product draw the same random numbers, hence the same dropout mask: with
different ones, differences between evaluations would be mostly noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamprm.errors import UserError, need_positive, need_whole
from dreamprm.hypergradients.forward_rules import ForwardRules, ReverseRules
from dreamprm.hypergradients.gradients import (
    grad,
    leaves,
    lower_gradient,
    refuse_independence,
    scalar,
    upper_gradient,
)
from dreamprm.hypergradients.interface import Loss
from dreamprm.hypergradients.nodes import keeping_tangents, need_second_derivatives
from dreamprm.hypergradients.precision import Precision, PrecisionWarning
from dreamprm.hypergradients.vectors import Tensors, norm, squares

CONTEXT = ("bits", "memory")
DISAGREEMENT = 0.1  # of two differences, beyond which neither can be relied on


class NoForwardMode(UserError):
    """An operation of the lower loss has no forward mode."""


class Product(Protocol):
    """What a hypergradient method needs of second derivatives.

    Attributes:
        requires: what the losses must allow, for people.
    """

    requires: ClassVar[str]

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q, shaped as φ."""

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q, shaped as α."""


class DoubleBackward:
    """Reverse over reverse: exact; keeps the graph of one evaluation and of its gradient.

    Runs under MATH attention, since the fast kernels have no second derivatives.
    """

    requires: ClassVar[str] = "second derivatives"

    def __init__(self, loss: Loss, lower: Tensors, upper: Tensors) -> None:
        self.lower, self.upper = leaves(lower), leaves(upper)
        with sdpa_kernel(SDPBackend.MATH):
            with ReverseRules():
                value = scalar(loss(self.lower, self.upper))
            refuse_independence(value, self.upper)
            with _refusing("double backward", "forward"):
                need_second_derivatives(value)
                self.gradient = grad(value, self.lower, create_graph=True)

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q, by the gradient of ∇_φ L · q."""
        return self._backward(q, self.lower)

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q, by the gradient of ∇_φ L · q."""
        return self._backward(q, self.upper)

    def _backward(self, q: Tensors, inputs: Tensors) -> Tensors:
        parts = [(g, v) for g, v in zip(self.gradient, q, strict=True) if g.requires_grad]
        if not parts:
            return [torch.zeros_like(x) for x in inputs]
        gradients, vectors = zip(*parts, strict=True)
        with sdpa_kernel(SDPBackend.MATH), _refusing("double backward", "forward"):
            return grad(gradients, inputs, grad_outputs=vectors, retain_graph=True)


class ForwardMode:
    """Dual numbers: exact; for ``cross`` no graph over the backbone.

    φ becomes dual with tangent q; the tangent of a gradient is then its derivative along q. That
    of ∇_α L is ``cross``: where α enters only at the loss, its graph reaches no further, and the
    backbone is evaluated once, with values and tangents. That of ∇_φ L is ``hvp``: forward over
    reverse (Pearlmutter 1994). The other order, the gradient of the loss's tangent, is not taken:
    in torch 2.13 it is silently wrong through layer, RMS and batch norms, whose tangents are not
    differentiable.

    Runs under MATH attention, since the fast kernels have no forward mode.
    """

    requires: ClassVar[str] = "forward-mode AD"

    def __init__(self, loss: Loss, lower: Tensors, upper: Tensors) -> None:
        self.loss = keeping_tangents(loss)
        self.lower, self.upper = lower, upper

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q: the tangents of ∇_φ L along q."""

        def gradient(duals: Tensors) -> Tensors:
            return grad(scalar(self.loss(duals, [a.detach() for a in self.upper])), duals)

        return _tangents(gradient, leaves(self.lower), q, self.lower)

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q: the tangents of ∇_α L along q."""

        def gradient(duals: Tensors) -> Tensors:
            return upper_gradient(self.loss, duals, self.upper)

        return _tangents(gradient, [p.detach() for p in self.lower], q, self.upper)


def _tangents(
    gradient: Callable[[Tensors], Tensors], lower: Tensors, q: Tensors, like: Tensors
) -> Tensors:
    """The derivative along q of a gradient, shaped as ``like``."""
    with sdpa_kernel(SDPBackend.MATH), ForwardRules(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, v) for p, v in zip(lower, q, strict=True)]
        try:
            found = [forward_ad.unpack_dual(g).tangent for g in gradient(duals)]
        except NotImplementedError as error:
            raise NoForwardMode(
                f"forward mode does not work for this lower loss ({error}): "
                "name another product, solver+double_backward or solver+finite_difference"
            ) from error
    return [
        torch.zeros_like(p) if t is None else t.detach() for p, t in zip(like, found, strict=True)
    ]


@contextmanager
def _refusing(what: str, other: str) -> Iterator[None]:
    """Says of derivatives that torch does not have which product to name instead."""
    try:
        yield
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        raise UserError(
            f"{what} does not work for this lower loss ({error}): "
            f"name another product, solver+{other} or solver+finite_difference"
        ) from error


class FiniteDifference:
    """Central differences of gradients along q (Liu et al. 2019, arXiv 1806.09055, equation 8).

    (∇L(φ + hq) − ∇L(φ − hq)) / 2h: two evaluations; for ``cross`` without a graph over the
    backbone. The parameters themselves are never changed, so nothing has to be restored.

    By default h is such that the change of φ, measured in the size of its entries, has length u^⅓:

        h = u^⅓ / √(Σ_t ‖q_t‖² / s_t²),   s_t = max(rms φ_t, rms φ / 10)

    over the tensors t of φ, u half the spacing of numbers near 1: truncation, ∝ h², and rounding,
    ∝ u/h, are of one size there. A step that does not scale with φ is far too long where weights
    are small, as before a norm layer under weight decay. ``benchmarks/difference_steps.py``
    holds this rule against others.

    Args:
        loss, lower, upper: as for the other products.
        epsilon: ε, more than 0; then h = ε / ‖q‖, whatever φ. DARTS and its successors take 0.01.
        check_every: at the first difference and at every so many after it, one of step 2h is taken
            too, two more evaluations; 0 for never.
        bits: of the mantissa of the arithmetic; by default that of the parameters.
        memory: counts the differences of one problem.

    Raises:
        UserError: an option is out of its range.

    Warns:
        PrecisionWarning: the loss runs in less than fp32, where differences are mostly rounding;
            the two steps disagree by more than 10 %; or rounding takes as much of a step itself.
    """

    requires: ClassVar[str] = "at least fp32"

    def __init__(
        self,
        loss: Loss,
        lower: Tensors,
        upper: Tensors,
        *,
        epsilon: float | None = None,
        check_every: int = 100,
        bits: int | None = None,
        memory: dict[str, Any] | None = None,
    ) -> None:
        if epsilon is not None:
            need_positive("epsilon", epsilon)
        need_whole("check_every", check_every, at_least=0)
        self.loss, self.lower, self.upper = loss, lower, upper
        self.epsilon, self.check_every = epsilon, check_every
        self.bits = Precision(lower).bits if bits is None else bits
        self.memory = {} if memory is None else memory

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q, by differences of ∇_φ L."""
        return self._checked(lower_gradient, q, self.lower)

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q, by differences of ∇_α L."""
        return self._checked(upper_gradient, q, self.upper)

    def step(self, q: Tensors) -> float:
        """h; q is not 0."""
        if self.epsilon is not None:
            return self.epsilon / norm(q)
        lengths, counts = squares([p.detach() for p in self.lower]), [p.numel() for p in self.lower]
        mean = sum(lengths) / sum(counts)
        relative = 0.0
        for of_q, of_phi, count in zip(squares(q), lengths, counts, strict=True):
            # Where all of φ is 0, nothing says what its size is.
            relative += of_q / (max(of_phi / max(count, 1), mean / 100) if mean else 1.0)
        return 2 ** (-(self.bits + 1) / 3) / math.sqrt(relative)

    def _value(self, lower: Tensors, upper: Tensors) -> Tensor:
        with Precision(lower) as precision:
            value = self.loss(lower, upper)
        if precision.below_fp32:
            warnings.warn(
                "finite differences of a loss that runs in less than fp32 can be wrong by tens of "
                "percent: forward mode is not",
                PrecisionWarning,
                stacklevel=2,
            )
        return value

    def _checked(
        self, gradient: Callable[[Loss, Tensors, Tensors], Tensors], q: Tensors, like: Tensors
    ) -> Tensors:
        if norm(q) == 0:
            return [torch.zeros_like(x) for x in like]
        step = self.step(q)
        found = self._difference(gradient, q, step)
        taken = self.memory.get("differences", 0)
        self.memory["differences"] = taken + 1
        if self.check_every and taken % self.check_every == 0:
            other = self._difference(gradient, q, 2 * step)
            apart = norm(_minus(found, other)) / (norm(found) or 1.0)
            moved = _minus(_moved(self.lower, q, step), self.lower)
            lost = norm([m.detach() - step * v for m, v in zip(moved, q, strict=True)])
            lost /= step * norm(q)
            if max(apart, lost) > DISAGREEMENT:
                warnings.warn(
                    "finite differences cannot be relied on here: those of two steps are "
                    f"{apart:.0%} apart, and rounding changes the step itself by {lost:.0%}; "
                    "forward mode is exact",
                    PrecisionWarning,
                    stacklevel=2,
                )
        return found

    def _difference(
        self, gradient: Callable[[Loss, Tensors, Tensors], Tensors], q: Tensors, step: float
    ) -> Tensors:
        ahead, behind = (
            gradient(self._value, _moved(self.lower, q, h), self.upper) for h in (step, -step)
        )
        return [d / (2 * step) for d in _minus(ahead, behind)]


def _moved(point: Tensors, q: Tensors, step: float) -> Tensors:
    return [torch.add(p.detach(), v, alpha=step) for p, v in zip(point, q, strict=True)]


def _minus(left: Tensors, right: Tensors) -> Tensors:
    return [a - b for a, b in zip(left, right, strict=True)]


PRODUCTS: dict[str, Callable[..., Product]] = {
    "double_backward": DoubleBackward,
    "forward": ForwardMode,
    "finite_difference": FiniteDifference,
}
