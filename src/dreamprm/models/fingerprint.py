"""A digest of a model: equal for equal weights and settings, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_digest(model: nn.Module, settings: dict[str, Any]) -> str:
    """A digest of the sums of the bits of a model's tensors, their names, and its settings."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in model.state_dict().items():
        bits = tensor.view(
            {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        )
        digest.update(f"{name} {tuple(tensor.shape)} {int(bits.sum())}\n".encode())
    return digest.hexdigest()
