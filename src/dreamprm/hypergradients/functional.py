"""Hypergradients of pure functions, as in jaxopt: no betty needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamprm.errors import UserError
from dreamprm.hypergradients.checkpointing import recomputing_alike
from dreamprm.hypergradients.interface import (
    OPTIMIZER,
    STEPS,
    Loss,
    LowerStep,
    Method,
    Point,
)
from dreamprm.hypergradients.precision import Precision
from dreamprm.hypergradients.registry import indirect_gradient, resolve
from dreamprm.hypergradients.unrolled import take_steps
from dreamprm.hypergradients.updates import read_optimizer
from dreamprm.hypergradients.vectors import Tensors

Parameters = Sequence[Tensor] | Mapping[str, Tensor]


def hypergradient(
    method: str,
    upper_loss: Callable[[Any, Any], Tensor],
    lower_loss: Callable[[Any, Any], Tensor],
    lower_params: Parameters,
    upper_params: Parameters,
    *,
    optimizer: Optimizer | None = None,
    memory: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The total derivative dM/dα = ∂M/∂α − (∂²L/∂α∂φ)ᵀ q at the given φ, with q ≈ H⁻¹ ∇_φ M.

    ``unrolled`` is not implicit: it takes ``iterations`` lower steps from the given φ first, as
    ``optimizer`` would, and gives dM/dα at their end, φ_T(α).

    Args:
        method: a name known to ``resolve``, e.g. ``cg``, or a pair ``solver+product``.
        upper_loss: M(φ, α), a scalar, a pure function on the current batch.
        lower_loss: L(φ, α), likewise.
        lower_params: φ, a sequence of tensors or a dict of named ones; the losses get it as it is
            (a dict is what ``torch.func.functional_call`` takes). All of them count as variables
            of the lower problem: leave out frozen ones.
        upper_params: α, likewise.
        optimizer: over the very tensors of ``lower_params``, for ``sama`` and ``unrolled``: SGD,
            Adam or AdamW of torch. It is read, never stepped.
        memory: what one call leaves for the next one of the same method on the same problem, e.g.
            the q that ``soba`` goes on from: pass the same dict, empty at first, to all of them. It
            is changed in place, and a part of your checkpoints, tensors and plain values by name.
            Without one, every call is a first one.
        **options: of the method, e.g. ``iterations`` and ``tolerance`` of ``cg``.

    Returns:
        dM/dα in the structure of ``upper_params``. The tensors given are not changed, nor are
        their ``requires_grad`` and ``grad``.

    Raises:
        UserError: the method or an option is not known or out of its range, the optimizer is
            missing or not used, a loss is not a scalar, v is not finite, or the lower loss does
            not depend on α.
        FloatingPointError: the result is not finite.

    The product of a method named by its solver alone is chosen by the arithmetic seen in the upper
    loss and by the dtype of φ: name a product where the lower loss runs in a coarser one.
    """
    chosen = resolve(method)
    chosen.check(options)
    if optimizer is not None and not chosen.needs & {OPTIMIZER, STEPS}:
        raise UserError(f"hypergradient method {method!r} takes no optimizer")
    held, like_lower = _flatten(lower_params, "lower_params")
    alpha, like_upper = _flatten(upper_params, "upper_params")

    def lower(phi: Tensors, alpha: Tensors) -> Tensor:
        return lower_loss(like_lower(phi), like_upper(alpha))

    def upper(phi: Tensors, alpha: Tensors) -> Tensor:
        return upper_loss(like_lower(phi), like_upper(alpha))

    with torch.enable_grad():  # also where the caller has switched it off
        point, direct, vector = evaluate(chosen, upper, lower, held, alpha, optimizer, options)
        if memory is not None:
            point = replace(point, memory=memory)
        indirect = indirect_gradient(chosen, point, vector, options)
    return like_upper([d + i for d, i in zip(direct, indirect, strict=True)])


def evaluate(
    method: Method,
    upper_loss: Loss,
    lower_loss: Loss,
    lower: Tensors,
    upper: Tensors,
    optimizer: Optimizer | None,
    options: Mapping[str, Any],
) -> tuple[Point, Tensors, Tensors]:
    """What a method is given: the point, which T lower steps lead to if it is ``unrolled``.

    Args:
        method: as of ``resolve``; the other arguments are those of :func:`hypergradient`, with
            lists of tensors in the place of structures.

    Returns:
        the point, ∂M/∂α there and v = ∇_φ M there.
    """
    upper_loss, lower_loss = map(recomputing_alike, (upper_loss, lower_loss))
    phi = [p.detach().requires_grad_() for p in lower]
    alpha = [a.detach().requires_grad_() for a in upper]
    steps: list[LowerStep] = []
    next_step = None
    if method.needs & {OPTIMIZER, STEPS}:
        if optimizer is None:
            raise UserError(
                f"hypergradient method {method.name!r} needs {OPTIMIZER}: pass optimizer="
            )
        if STEPS in method.needs:
            count = options.get("iterations")
            if count is None:
                raise UserError(
                    f"hypergradient method {method.name!r} needs iterations: the lower steps"
                )
            phi, steps = take_steps(lower_loss, phi, alpha, optimizer, lower, count)
            phi = [p.detach().requires_grad_() for p in phi]
        else:
            next_step = LowerStep(*read_optimizer(optimizer, lower))
    with Precision(phi) as precision:
        value = upper_loss(phi, alpha)
    if value.numel() != 1:
        raise UserError(f"the upper loss has shape {tuple(value.shape)}, expected a scalar")
    if not value.requires_grad:
        raise UserError("the upper loss depends on neither the lower nor the upper parameters")
    grads = torch.autograd.grad(value, [*alpha, *phi], allow_unused=True, materialize_grads=True)
    point = Point(lower_loss, phi, alpha, precision.bits, upper_loss, next_step, steps)
    return point, list(grads[: len(alpha)]), list(grads[len(alpha) :])


def _flatten(params: Parameters, name: str) -> tuple[Tensors, Callable[[Tensors], Any]]:
    """The tensors, and what puts such tensors back into the structure."""
    if not isinstance(params, Mapping | Sequence) or not params:
        found = f"one {type(params).__name__}" if isinstance(params, Tensor) else repr(params)
        raise UserError(f"{name} is {found}, expected a list or dict of tensors")
    for tensor in params.values() if isinstance(params, Mapping) else params:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{name} holds a {kind}, expected real floating-point tensors")
    if isinstance(params, Mapping):
        names = list(params)
        return list(params.values()), lambda ts: dict(zip(names, ts, strict=True))
    if isinstance(params, tuple):
        return list(params), tuple
    return list(params), list
