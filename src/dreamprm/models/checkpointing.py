"""Gradient checkpointing of a backbone.

What is recomputed at other parameters than the module's own is seen to in
``dreamprm.hypergradients.checkpointing``.
"""

from __future__ import annotations

from functools import partial

from torch import nn
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
        # A reentrant one has no derivatives by autograd.grad.
        layer._gradient_checkpointing_func = partial(  # type: ignore[assignment]
            checkpoint, use_reentrant=False
        )
