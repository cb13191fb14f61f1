"""A digest of a model: equal for equal weights and settings, wherever they lie."""

from __future__ import annotations

import hashlib
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


def reading_digest(model: Any) -> str:
    """A digest of what else a reward model reads solutions by: tokenizer, images, configs."""
    found = hashlib.sha256()
    config = model.backbone.config.to_dict()
    for part in (model.tokenizer.get_vocab(), model.tokenizer.chat_template, _reads(config)):
        found.update(json.dumps(part, sort_keys=True, default=str).encode())
    if model.image_processor is not None:
        found.update(model.image_processor.to_json_string().encode())
    return found.hexdigest()


def _reads(config: Any) -> Any:
    """A config without what says only where a backbone is from and how it was loaded."""
    if not isinstance(config, dict):
        return config
    left_out = ("transformers_version", "_name_or_path", "architectures", "dtype")
    return {name: _reads(value) for name, value in config.items() if name not in left_out}
