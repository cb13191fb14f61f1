"""The reward model that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamprm.config import ModelConfig
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.models.checkpointing import enable_checkpointing
from dreamprm.models.lora import add_lora, is_plain_backbone
from dreamprm.models.reward_model import STEP_MARKER, ProcessRewardModel
from dreamprm.models.tiny import (
    TINY_BACKBONES,
    tiny_backbone,
    tiny_image_processor,
    tiny_tokenizer,
)


def build_model(config: ModelConfig, rows: Sequence[Trajectory], seed: int) -> ProcessRewardModel:
    """A new reward model.

    Args:
        config: which backbone.
        rows: the training solutions, from whose text a tiny backbone's tokenizer is made.
        seed: of a tiny backbone's weights.

    Raises:
        UserError: there is no such backbone, or it has no vision tower to freeze,
            or its layers do not allow checkpointing, or none is a target of LoRA.
    """
    name = config.backbone
    if name.startswith("tiny-"):
        if name not in TINY_BACKBONES:
            raise UserError(unknown_name("tiny backbone", name, TINY_BACKBONES))
        tiny = config.tiny
        texts = (text for row in rows for text in (row.question, *row.steps))
        tokenizer = tiny_tokenizer(texts, tiny.vocabulary, STEP_MARKER)
        backbone = tiny_backbone(
            name, tokenizer, tiny.width, tiny.layers, tiny.heads, tiny.vision_layers, seed
        )
        processor = tiny_image_processor(tiny.max_pixels) if name == "tiny-qwen2-vl" else None
        model = ProcessRewardModel(backbone, tokenizer, processor)
    else:
        model = ProcessRewardModel.from_pretrained(name)
    if config.max_pixels is not None and model.image_processor is not None:
        size = dict(model.image_processor.size)
        model.image_processor.size = size | {"longest_edge": config.max_pixels}
    if config.freeze_vision:
        tower = getattr(model.backbone, "visual", None)
        if tower is None:
            raise UserError(f"model.freeze_vision is true, but {name} has no vision tower")
        tower.requires_grad_(False)
    if config.lora.rank:
        named = not name.startswith("tiny-") and is_plain_backbone(name, model.backbone)
        base = (str(Path(name).resolve()) if Path(name).is_dir() else name) if named else None
        model.adapter = add_lora(model.backbone, config.lora, base)
    if config.gradient_checkpointing:
        enable_checkpointing(model.backbone)
    return model
