"""The reward model that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.models.checkpointing import enable_checkpointing
from dreamprm.models.config import ModelConfig
from dreamprm.models.families import FAMILIES, QWEN_TOKENS, family_of
from dreamprm.models.frozen import freeze, plain_name
from dreamprm.models.lora import add_lora, is_plain_backbone
from dreamprm.models.readouts import readout_named
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.tiny import (
    TINY_BACKBONES,
    tiny_backbone,
    tiny_image_processor,
    tiny_tokenizer,
)
from dreamprm.models.vision_cache import cache_features

TOKENIZER_ROWS = 20_000  # solutions, evenly spread, that a tiny tokenizer learns its merges from


def build_model(
    config: ModelConfig, rows: Sequence[Trajectory], seed: int, precision: str = "fp32"
) -> ProcessRewardModel:
    """A new reward model.

    Args:
        config: which backbone.
        rows: the training solutions, from whose text a tiny backbone's tokenizer is made.
        seed: of a tiny backbone's weights.
        precision: in which a frozen backbone runs, unless the config has one for it.

    Raises:
        UserError: there is no such backbone, or it has no vision tower to freeze,
            or its layers do not allow checkpointing, or none is a target of LoRA.
    """
    name = config.backbone
    settings: dict[str, Any] = {"readout": config.readout, "step_marker": config.step_marker}
    if config.layers:
        settings["layers"] = list(config.layers)
    if readout_named(config.readout).has_widths:
        settings["widths"] = list(config.widths)
    if config.system is not None:
        settings["system"] = config.system
    if readout_named(config.readout).two_words:
        settings |= {"positive": config.positive, "negative": config.negative}
    if name.startswith("tiny-"):
        if name not in TINY_BACKBONES:
            raise UserError(unknown_name("tiny backbone", name, TINY_BACKBONES))
        tiny = config.tiny
        sample = rows[:: max(1, len(rows) // TOKENIZER_ROWS)]
        texts = (text for row in sample for text in (row.question, *row.steps))
        family = FAMILIES.get(TINY_BACKBONES[name])
        tokenizer = tiny_tokenizer(
            texts,
            tiny.vocabulary,
            config.step_marker,
            [*family.tokens.values(), *family.words] if family else QWEN_TOKENS.values(),
        )
        backbone = tiny_backbone(
            name, tokenizer, tiny.width, tiny.layers, tiny.heads, tiny.vision_layers, seed
        )
        processor = tiny_image_processor(name, backbone, tiny.max_pixels)
        model = ProcessRewardModel(backbone, tokenizer, processor, **settings)
    else:
        model = ProcessRewardModel.from_pretrained(name, **settings)
    family = family_of(model.backbone.config)
    if config.max_pixels is not None and family is not None:
        family.limit_pixels(model.image_processor, model.backbone.config, config.max_pixels)
    if config.freeze_vision:
        if family is None:
            raise UserError(f"model.freeze_vision is true, but {name} has no vision tower")
        model.backbone.get_submodule(family.tower).requires_grad_(False)
    named = not name.startswith("tiny-") and is_plain_backbone(name, model.backbone)
    base = plain_name(name) if named else None
    if config.freeze_backbone:
        freeze(model, config.frozen_precision or precision, base)
    if config.lora.rank:
        if model.head is not None:
            model.head.requires_grad_(False)
        model.adapter = add_lora(model.backbone, config.lora, base)
    if family is not None and config.freeze_vision and config.vision_cache_gb:
        cache_features(model.backbone, family, int(config.vision_cache_gb * 2**30))
    if config.gradient_checkpointing:
        enable_checkpointing(model.backbone)
    return model
