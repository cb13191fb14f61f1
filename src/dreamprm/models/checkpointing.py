"""Gradient checkpointing that recomputes with the parameters of the forward pass.

``torch.func.functional_call`` puts the module's own parameters back before the backward pass runs,
and torch's checkpoint then recomputes activations with those: the gradients of a loss at other
parameters (a finite difference's, an unrolled step's) are silently wrong.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from dreamprm.errors import UserError


def enable_checkpointing(backbone: nn.Module) -> None:
    """Keeps the inputs of the backbone's layers only, and computes each anew in the backward pass.

    In training mode; costs one more forward pass.

    Args:
        backbone: a Hugging Face model.

    Raises:
        UserError: its classes do not allow it.
    """
    layers = [m for m in backbone.modules() if hasattr(m, "gradient_checkpointing")]
    if not layers or not getattr(backbone, "supports_gradient_checkpointing", False):
        raise UserError(
            "model.gradient_checkpointing is true, but "
            f"{type(backbone).__name__} does not support gradient checkpointing"
        )
    for layer in layers:
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        layer._gradient_checkpointing_func = partial(_checkpoint, layer)  # type: ignore[assignment]


class _Call(nn.Module):
    """A layer's forward pass as Hugging Face hands it over, at any parameters of the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, function: Any, *args: Any) -> Any:
        return function(*args)


def _checkpoint(layer: nn.Module, function: Any, *args: Any) -> Any:
    call = _Call(layer)
    # Those that are in place now: under functional_call not the module's own.
    held = dict(call.named_parameters(remove_duplicate=False)) | dict(call.named_buffers())

    def at_these(*args: Any) -> Any:
        return torch.func.functional_call(call, held, (function, *args), tie_weights=False)

    # autograd.grad runs outside the function modes (the rules of forward mode are one), but what
    # is recomputed in it must be what was computed.
    modes = _get_current_function_mode_stack()
    return checkpoint(
        at_these, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _Modes(modes))
    )


class _Modes(ExitStack):
    """Function modes to be in, again for every time that something is recomputed."""

    def __init__(self, modes: list[TorchFunctionMode]) -> None:
        super().__init__()
        self.modes = modes

    def __enter__(self) -> _Modes:
        for mode in self.modes:
            self.enter_context(mode)
        return self
