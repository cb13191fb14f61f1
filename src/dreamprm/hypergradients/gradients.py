"""First gradients of the lower loss, on which all products build."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamprm.errors import UserError
from dreamprm.hypergradients.interface import Loss
from dreamprm.hypergradients.vectors import Tensors


def lower_gradient(loss: Loss, lower: Tensors, upper: Tensors) -> Tensors:
    """∇_φ L, shaped as φ."""
    phi = leaves(lower)
    return grad(scalar(loss(phi, [a.detach() for a in upper])), phi)


def upper_gradient(loss: Loss, lower: Tensors, upper: Tensors) -> Tensors:
    """∇_α L, shaped as α; no graph over the backbone.

    Raises:
        UserError: L does not depend on α.
    """
    alpha = leaves(upper)
    value = scalar(loss(lower, alpha))
    refuse_independence(value, alpha)
    return grad(value, alpha)


def leaves(tensors: Sequence[Tensor]) -> Tensors:
    """The same values as leaves of a new graph; the caller's tensors and their grads stay."""
    return [t.detach().requires_grad_() for t in tensors]


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensors,
    grad_outputs: Sequence[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Tensors:
    """autograd.grad with zeros for what the outputs do not depend on."""
    if isinstance(outputs, Tensor) and not outputs.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(
        torch.autograd.grad(
            outputs,
            inputs,
            grad_outputs,
            retain_graph,
            create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def scalar(loss: Tensor) -> Tensor:
    """The lower loss, of shape ().

    Raises:
        UserError: it has more than one entry.
    """
    if loss.numel() != 1:
        raise UserError(f"the lower loss has shape {tuple(loss.shape)}, expected a scalar")
    return loss.reshape(())


def refuse_independence(loss: Tensor, upper: Tensors) -> None:
    """Refuses a lower loss without α: a hypergradient of zero would be right and useless.

    Raises:
        UserError: most likely a weight was forgotten.
    """
    grads: Sequence[Tensor | None] = (
        torch.autograd.grad(loss, upper, retain_graph=True, allow_unused=True)
        if loss.requires_grad
        else [None]
    )
    if all(g is None for g in grads):
        raise UserError("the lower loss does not depend on the upper parameters")
