"""A digest of a model: equal for equal weights and settings, wherever they lie."""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from torch import nn


def weights_digest(model: nn.Module, settings: dict[str, Any]) -> str:
    """A digest of a model's tensors, their names, and its settings."""
    digest = xxhash.xxh3_128(json.dumps(settings).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
