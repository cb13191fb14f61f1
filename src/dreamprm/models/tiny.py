"""Small backbones of random weights from the real transformers classes: no download needed.

transformers' default initialisation (std 0.02) lets a model of width 96 learn next to nothing from
images in minutes. Weights from N(0, 1/fan_in) and embeddings from N(0, 0.5²) do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen3Config,
    Qwen3Model,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dreamprm.data.encoding import IMAGE_PAD, VISION_END, VISION_START
from dreamprm.errors import UserError, unknown_name

PAD, VIDEO_PAD = "<|endoftext|>", "<|video_pad|>"

TINY_BACKBONES = ("tiny-qwen2-vl", "tiny-qwen2", "tiny-qwen3")


def tiny_tokenizer(texts: Iterable[str], vocabulary: int, step_marker: str) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``; every text can be encoded with it.

    Args:
        texts: what to learn merges from.
        vocabulary: number of entries, at least the 256 bytes and the special tokens.
        step_marker: the token that ends each step.
    """
    special = [PAD, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, step_marker]
    tokenizer = Tokenizer(models.BPE())
    # Digits on their own, as in Qwen2's tokenizer: numbers are then read place by place.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, extra_special_tokens=special[1:]
    )


def tiny_image_processor(max_pixels: int) -> Any:
    """Qwen2-VL's image processor; images are scaled to ``max_pixels`` pixels at most."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": max_pixels})


def tiny_backbone(
    name: str, tokenizer: Any, width: int, layers: int, heads: int, vision_layers: int, seed: int
) -> nn.Module:
    """A backbone with random weights.

    Args:
        name: one of ``TINY_BACKBONES``.
        tokenizer: gives the vocabulary and the ids of the vision tokens.
        width: of the hidden states; the vision tower has two thirds of it.
        layers: transformer layers of the language model.
        heads: attention heads; width / heads must be a multiple of 8, and width at least 32.
        vision_layers: transformer layers of the vision tower.
        seed: of the weights.

    Raises:
        UserError: the name is not known, or the width does not go with the heads.
    """
    if name not in TINY_BACKBONES:
        raise UserError(unknown_name("tiny backbone", name, TINY_BACKBONES))
    if width < 32 or heads < 1 or width % (8 * heads):
        raise UserError(
            f"a tiny backbone of width {width} cannot have {heads} heads: "
            "expected at least 32, and a multiple of 8 a head"
        )
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 8 * width // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 8192,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": False,
    }
    if name == "tiny-qwen2-vl":
        half = width // heads // 2
        spatial = 3 * half // 8
        vision_width = 2 * width // 3 // 16 * 16
        config = Qwen2VLConfig(
            text_config=text
            | {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [half - 2 * spatial, spatial, spatial],
                }
            },
            vision_config={
                "depth": vision_layers,
                "embed_dim": vision_width,
                "hidden_size": width,
                "num_heads": 4,
                "mlp_ratio": 2,
            },
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PAD),
            video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_PAD),
            vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_START),
            vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_END),
        )
        model: nn.Module = Qwen2VLModel(config)
    elif name == "tiny-qwen2":
        model = Qwen2Model(Qwen2Config(**text))
    else:
        model = Qwen3Model(Qwen3Config(**text, head_dim=width // heads))
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Weights from N(0, 1/fan_in), embeddings from N(0, 0.5²), biases zero; norms stay at one."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.5, generator=generator)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, fan_in**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
