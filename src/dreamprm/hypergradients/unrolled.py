"""Unrolled differentiation: through the last T steps that the lower optimizer really took.

With φ_{t+1}, s_{t+1} = U(φ_t, g_t, s_t) and g_t = ∇_φ L_t(φ_t, α), the adjoints run backwards:

    λ_g = (∂φ'/∂g)ᵀ λ_φ + (∂s'/∂g)ᵀ λ_s          dM/dα += (∂²L_t/∂α∂φ)ᵀ λ_g
    λ_φ ← (∂φ'/∂φ)ᵀ λ_φ + (∂s'/∂φ)ᵀ λ_s + (∂²L_t/∂φ²) λ_g,   λ_s likewise

Each step needs the very two products that implicit differentiation does, so no graph spans the
steps, torch's optimizer stays as it is, and memory grows by the recorded parameters only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from dreamprm.errors import UserError, need_whole
from dreamprm.hypergradients.gradients import lower_gradient
from dreamprm.hypergradients.interface import (
    STEPS,
    Loss,
    LowerStep,
    Point,
    keywords,
    refuse_unknown_options,
)
from dreamprm.hypergradients.products import CONTEXT, DoubleBackward, Product
from dreamprm.hypergradients.randomness import RandomState, past_randomness
from dreamprm.hypergradients.updates import State, read_optimizer, update
from dreamprm.hypergradients.vectors import Tensors, norm


class ReplayWarning(UserWarning):
    """A recorded step's loss is another function when it is evaluated again."""


@dataclass(frozen=True)
class UnrolledMethod:
    """Reverse mode through lower steps (Maclaurin et al. 2015; Franceschi et al. 2017).

    The option ``iterations`` is T. Fewer than were taken since the last upper step is truncated
    unrolling (Shaban et al. 2019); by default it is all of them, after a warm-up the steps of the
    first inner loop that ends beyond it.

    Attributes:
        name, source, uses_curvature: see :class:`~dreamprm.hypergradients.interface.Method`.
        product: of products.py.
    """

    name: str
    product: Callable[..., Product]
    source: str = ""
    uses_curvature: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """The recorded steps."""
        return frozenset({STEPS})

    @property
    def options(self) -> dict[str, Any]:
        """``iterations``, and those of the product."""
        return {"iterations": None} | keywords(self.product, but=CONTEXT)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuses unknown options and wrong values."""
        refuse_unknown_options(f"hypergradient method {self.name!r}", options, self.options)
        if options.get("iterations") is not None:
            need_whole("iterations", options["iterations"], at_least=1)
        one = torch.ones(1, dtype=torch.float64)
        self.product(lambda p, a: (a[0] * p[0]).sum(), [one], [one], **_of_product(options))

    def indirect(self, point: Point, vector: Tensors, options: Mapping[str, Any]) -> Tensors:
        """Σ_t (∂²L_t/∂α∂φ)ᵀ λ_g, shaped as α.

        Raises:
            UserError: fewer steps were recorded than ``iterations``, or one of them does not lead
                to the φ that comes next.

        Warns:
            ReplayWarning: with double backward, a loss has not the gradient that was recorded.
        """
        self.check(options)
        count = options.get("iterations") or len(point.steps)
        if not 0 < count <= len(point.steps):
            raise UserError(
                f"iterations is {count}, but {len(point.steps)} lower steps were recorded"
            )
        of_product = _of_product(options)
        given = {"bits": point.bits, "memory": point.memory}
        of_product |= {name: given[name] for name in CONTEXT if name in keywords(self.product)}
        total = [torch.zeros_like(a) for a in point.upper]
        of_lower, of_state, reached = vector, None, point.lower
        for index, step in enumerate(reversed(point.steps[-count:])):
            assert step.loss is not None
            assert step.lower is not None
            after, adjoints = _through_update(step, of_lower, of_state)
            _refuse_another_step(step.lower, after, reached, count - index)
            direct, of_gradient, of_state = adjoints
            reached = step.lower
            product = self.product(step.loss, step.lower, point.upper, **of_product)
            if isinstance(product, DoubleBackward):
                _warn_of_another_loss(step, product.gradient, point.bits, count - index)
            total = [a + b for a, b in zip(total, product.cross(of_gradient), strict=True)]
            if index < count - 1:
                curved = product.hvp(of_gradient)
                of_lower = [a + b for a, b in zip(direct, curved, strict=True)]
                if step.adjoint is not None:
                    of_lower = [a + b for a, b in zip(of_lower, step.adjoint, strict=True)]
        return total


def _of_product(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "iterations"}


def _through_update(
    step: LowerStep, of_lower: Tensors, of_state: State | None
) -> tuple[Tensors, tuple[Tensors, Tensors, State]]:
    """φ', and the adjoints of φ, g and s from those of φ' and s'."""
    assert step.lower is not None
    assert step.gradient is not None
    lower = [p.detach().requires_grad_() for p in step.lower]
    gradient = [g.detach().requires_grad_() for g in step.gradient]
    state = [{n: s.detach().requires_grad_() for n, s in one.items()} for one in step.state]
    with torch.enable_grad():
        after, state_after = update(step.rules, lower, gradient, state, step.clip)
    outputs, adjoints = list(after), list(of_lower)
    if of_state is not None:
        for one, adjoint in zip(state_after, of_state, strict=True):
            outputs += [one[name] for name in adjoint]
            adjoints += adjoint.values()
    inputs = [*lower, *gradient, *(s for one in state for s in one.values())]
    found = iter(
        torch.autograd.grad(outputs, inputs, adjoints, allow_unused=True, materialize_grads=True)
    )
    adjoints_before = (
        [next(found) for _ in lower],
        [next(found) for _ in gradient],
        [{name: next(found) for name in one} for one in state],
    )
    return [p.detach() for p in after], adjoints_before


def _refuse_another_step(before: Tensors, after: Tensors, reached: Tensors, number: int) -> None:
    """Refuses a step that the optimizer took otherwise than written out, or was not alone in.

    Two ways to round a step differ by few units in the last place of φ, and of the step.
    """
    for index, (p, found, expected) in enumerate(zip(before, after, reached, strict=True)):
        p, expected = p.detach(), expected.detach()
        error, length = (found - expected).norm(), (expected - p).norm()
        size = torch.finfo(p.dtype).eps * (p.norm() + expected.norm())
        if not error <= 1e-3 * length + 4 * size:
            raise UserError(
                f"recorded lower step {number} leads parameter {index}, of shape "
                f"{tuple(p.shape)}, {float(error):.3g} away from where the next one found it, "
                f"{float(length):.3g} from its start: the lower optimizer is not the SGD, Adam or "
                "AdamW of torch, or something else changed the parameters in between"
            )


def _warn_of_another_loss(step: LowerStep, found: Tensors, bits: int, number: int) -> None:
    """Says where a replayed gradient is not that of the run; rounding alone is far below."""
    assert step.gradient is not None
    error = norm([a.detach() - b for a, b in zip(found, step.gradient, strict=True)])
    length = norm(step.gradient)
    if error > 2 ** (-bits / 4) * length:
        warnings.warn(
            f"recorded lower step {number} had a gradient of length {length:.3g}, and evaluated "
            f"again one that is {error:.3g} away: the loss depends on something that is not "
            "recorded, beyond its batch, the problems' trainable parameters, buffers and step "
            "counts, and torch's generators",
            ReplayWarning,
            stacklevel=2,
        )


def take_steps(
    loss: Loss,
    lower: Tensors,
    upper: Tensors,
    optimizer: Optimizer,
    held: Sequence[torch.Tensor],
    count: int,
) -> tuple[Tensors, list[LowerStep]]:
    """Takes lower steps as an optimizer would, and records them; the optimizer itself stays.

    Args:
        loss: L.
        lower, upper: φ and α at the start.
        optimizer: whose rule and state; over the tensors ``held``, which stand for ``lower``.
        held: the optimizer's own tensors.
        count: of steps.

    Returns:
        φ at the end, and the steps.
    """
    rules, state = read_optimizer(optimizer, held)
    steps = []
    for _ in range(count):
        past = past_randomness(loss, RandomState.now(lower), lower)
        gradient = lower_gradient(loss, lower, upper)
        steps.append(LowerStep(rules, state, 0.0, gradient, lower, past))
        with torch.no_grad():
            lower, state = update(rules, lower, gradient, state)
        rules = [rule.next() for rule in rules]
    return lower, steps
