"""LoRA by peft: low-rank adapters beside frozen linear layers, saved merged or on their own.

Adapters stay in fp32 whatever the backbone's arithmetic is (Hu et al. 2021, arXiv 2106.09685).
"""

# peft is imported where it is used: it takes seconds, and most runs have no adapters.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from dreamprm.errors import UserError, unknown_name
from dreamprm.models.config import LoraConfig

ADAPTER_FOLDER, BASE_FOLDER, PREFIX = "adapter", "base", "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """What a backbone's adapters stand on.

    Attributes:
        base: the folder or hub name of the backbone as it was; None if it is nowhere but here.
        merge: whether they are saved as part of the weights.
    """

    base: str | None
    merge: bool


def add_lora(backbone: Any, config: LoraConfig, base: str | None) -> Adapter:
    """Freezes the backbone and puts adapters, that change nothing yet, beside its linear layers.

    Layers that are frozen already get none.

    Args:
        backbone: a Hugging Face model.
        config: of rank at least 1.
        base: see :class:`Adapter`.

    Raises:
        UserError: no trainable linear layer is named as one of the targets.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    linear = [
        name
        for name, m in backbone.named_modules()
        if isinstance(m, nn.Linear) and m.weight.requires_grad
    ]
    chosen = linear
    if config.targets:
        for target in config.targets:
            if not any(_is(name, target) for name in linear):
                known = sorted({name.rpartition(".")[2] for name in linear})
                raise UserError(unknown_name("layer in model.lora.targets", target, known))
        chosen = [name for name in linear if any(_is(name, target) for target in config.targets)]
    backbone.requires_grad_(False)
    inject_adapter_in_model(
        PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=chosen,
            base_model_name_or_path=base,
        ),
        backbone,
    )
    for name, p in backbone.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
            p.requires_grad_(True)
    return Adapter(base, config.merge)


def is_plain_backbone(path: str, backbone: Any) -> bool:
    """Whether the folder or hub name holds this very backbone, and adapters may stand on it.

    Not so if they were saved apart from it, or its embeddings were enlarged for the step marker.
    """
    if (Path(path) / ADAPTER_FOLDER).is_dir():
        return False
    rows = AutoConfig.from_pretrained(path).get_text_config().vocab_size
    return backbone.get_input_embeddings().num_embeddings == rows


def save_backbone(backbone: Any, adapter: Adapter | None, folder: Path) -> dict[str, Any]:
    """Writes the backbone, with its adapters merged or beside it, and changes nothing in it.

    Returns:
        what :func:`load_backbone` has to be told.
    """
    if adapter is None or adapter.merge:
        backbone.save_pretrained(
            folder, state_dict=None if adapter is None else state_dict_of(backbone, merged=True)
        )
        return {}
    from peft import get_peft_model_state_dict

    kept = folder / ADAPTER_FOLDER
    kept.mkdir(exist_ok=True)
    backbone.peft_config["default"].save_pretrained(kept)
    tensors = get_peft_model_state_dict(backbone, adapter_name="default")
    save_file(
        {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()},
        kept / "adapter_model.safetensors",
    )
    backbone.config.save_pretrained(folder)
    if adapter.base is None:
        backbone.save_pretrained(
            folder / BASE_FOLDER, state_dict=state_dict_of(backbone, merged=False)
        )
    return {"base": adapter.base or BASE_FOLDER}


def load_backbone(path: str | Path, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    """A backbone as it was saved; adapters that were saved on their own become part of it.

    Args:
        path: its folder, or the hub name of a plain one.
        settings: what :func:`save_backbone` gave.
        dtype: of its parameters.
    """
    base = settings.get("base")
    if base is None:
        return AutoModel.from_pretrained(path, dtype=dtype)
    backbone = AutoModel.from_pretrained(
        Path(path) / BASE_FOLDER if base == BASE_FOLDER else base, dtype=dtype
    )
    if not (Path(path) / ADAPTER_FOLDER).is_dir():
        return backbone
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(backbone, Path(path) / ADAPTER_FOLDER)
    return model.merge_and_unload()


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


@torch.no_grad()
def state_dict_of(backbone: Any, merged: bool) -> dict[str, Tensor]:
    """The tensors under the names that they had without adapters."""
    from peft.tuners.lora import LoraLayer

    state = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in backbone.state_dict().items()
        if "lora_" not in name
    }
    for name, module in backbone.named_modules():
        if merged and isinstance(module, LoraLayer):
            weight = state[f"{name}.weight"]
            delta: Any = module.get_delta_weight("default")
            state[f"{name}.weight"] = (weight + delta).to(weight.dtype)
    return state
