"""Hypergradients of pure functions, as in jaxopt: no betty needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamprm.errors import UserError
from dreamprm.hypergradients.interface import OPTIMIZER, STEPS, LowerStep, Point
from dreamprm.hypergradients.precision import Precision
from dreamprm.hypergradients.registry import indirect_gradient, resolve
from dreamprm.hypergradients.solvers import Tensors
from dreamprm.hypergradients.unrolled import take_steps
from dreamprm.hypergradients.updates import read_optimizer

Parameters = Sequence[Tensor] | Mapping[str, Tensor]


def hypergradient(
    method: str,
    upper_loss: Callable[[Any, Any], Tensor],
    lower_loss: Callable[[Any, Any], Tensor],
    lower_params: Parameters,
    upper_params: Parameters,
    *,
    optimizer: Optimizer | None = None,
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
            (a dict is what ``torch.func.functional_call`` takes).
        upper_params: α, likewise.
        optimizer: over the very tensors of ``lower_params``, for ``sama`` and ``unrolled``: SGD,
            Adam or AdamW of torch. It is read, never stepped.
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
    held, like_lower = _flatten(lower_params)
    alpha, like_upper = _flatten(upper_params)
    phi = [p.detach().requires_grad_() for p in held]
    alpha = [a.detach().requires_grad_() for a in alpha]

    def lower(phi: Tensors, alpha: Tensors) -> Tensor:
        return lower_loss(like_lower(phi), like_upper(alpha))

    def upper(phi: Tensors, alpha: Tensors) -> Tensor:
        return upper_loss(like_lower(phi), like_upper(alpha))

    steps: list[LowerStep] = []
    next_step = None
    if chosen.needs & {OPTIMIZER, STEPS}:
        if optimizer is None:
            raise UserError(f"hypergradient method {method!r} needs {OPTIMIZER}: pass optimizer=")
        if STEPS in chosen.needs:
            count = options.get("iterations")
            if count is None:
                raise UserError(
                    f"hypergradient method {method!r} needs iterations: the lower steps"
                )
            phi, steps = take_steps(lower, phi, alpha, optimizer, held, count)
            phi = [p.detach().requires_grad_() for p in phi]
        else:
            next_step = LowerStep(*read_optimizer(optimizer, held))
    elif optimizer is not None:
        raise UserError(f"hypergradient method {method!r} takes no optimizer")

    with Precision(phi) as precision:
        value = upper(phi, alpha)
    if value.numel() != 1:
        raise UserError(f"the upper loss has shape {tuple(value.shape)}, expected a scalar")
    grads = torch.autograd.grad(value, [*alpha, *phi], allow_unused=True, materialize_grads=True)
    direct, vector = grads[: len(alpha)], list(grads[len(alpha) :])
    point = Point(lower, phi, alpha, precision.bits, upper, next_step, steps)
    indirect = indirect_gradient(chosen, point, vector, options)
    return like_upper([d + i for d, i in zip(direct, indirect, strict=True)])


def _flatten(params: Parameters) -> tuple[Tensors, Callable[[Tensors], Any]]:
    """The tensors, and what puts such tensors back into the structure."""
    if isinstance(params, Mapping):
        names = list(params)
        return list(params.values()), lambda ts: dict(zip(names, ts, strict=True))
    if isinstance(params, tuple):
        return list(params), tuple
    return list(params), list
