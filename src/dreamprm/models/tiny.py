"""Small backbones of random weights from the real transformers classes: no download needed.

transformers' default initialisation (std 0.02) lets a model of width 96 learn next to nothing from
images in minutes. Weights from N(0, 1/fan_in) and embeddings from N(0, 0.5²) do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from dreamprm.errors import UserError, unknown_name
from dreamprm.models.families import FAMILIES, QWEN_TOKENS, TinySize

PAD = "<|endoftext|>"

TINY_BACKBONES = {  # the config's model_type of each
    "tiny-qwen2-vl": "qwen2_vl",
    "tiny-qwen2.5-vl": "qwen2_5_vl",
    "tiny-qwen3-vl": "qwen3_vl",
    "tiny-internvl": "internvl",
    "tiny-llava-onevision": "llava_onevision",
    "tiny-smolvlm": "smolvlm",
    "tiny-idefics3": "idefics3",
    "tiny-qwen2": "qwen2",
    "tiny-qwen3": "qwen3",
    "tiny-llama": "llama",
}


def tiny_tokenizer(
    texts: Iterable[str],
    vocabulary: int,
    step_marker: str,
    image_tokens: Iterable[str] = tuple(QWEN_TOKENS.values()),
) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``; every text can be encoded with it.

    Args:
        texts: what to learn merges from.
        vocabulary: number of entries, at least the 256 bytes and the special tokens.
        step_marker: the token that ends each step.
        image_tokens: the special tokens of the backbone's family.
    """
    special = [PAD, *image_tokens, step_marker]
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


def tiny_image_processor(name: str, backbone: Any, max_pixels: int) -> Any:
    """The image processor of a tiny backbone's family; None for a text-only one.

    Args:
        name: a key of ``TINY_BACKBONES``.
        backbone: the model, whose config has to agree.
        max_pixels: images are scaled to this many pixels at most.
    """
    family = FAMILIES.get(TINY_BACKBONES[name])
    if family is None:
        return None
    _, options = family.tiny(TinySize(1, 1, 1))
    processor = getattr(transformers, family.image_processor)(**options)
    family.limit_pixels(processor, backbone.config, max_pixels)
    return processor


def tiny_backbone(
    name: str,
    tokenizer: Any,
    width: int,
    layers: int,
    heads: int,
    vision_layers: int,
    seed: int,
    kind: Any = AutoModel,
) -> nn.Module:
    """A backbone with random weights.

    Args:
        name: a key of ``TINY_BACKBONES``.
        tokenizer: gives the vocabulary and the ids of the image tokens.
        width: of the hidden states; the vision tower has two thirds of it.
        layers: transformer layers of the language model.
        heads: attention heads; width / heads must be a multiple of 8, and width at least 32.
        vision_layers: transformer layers of the vision tower.
        seed: of the weights.
        kind: the auto class that makes it; one with a vocabulary head can generate.

    Raises:
        UserError: the name is not known, or the width does not go with the heads.
    """
    if name not in TINY_BACKBONES:
        raise UserError(unknown_name("tiny backbone", name, TINY_BACKBONES))
    if width < 32 or heads < 1 or width % (8 * heads):
        raise UserError(
            f"a tiny backbone of width {width} (model.tiny.width) cannot have {heads} heads "
            "(model.tiny.heads): expected a width of at least 32, and a multiple of 8 a head"
        )
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 8 * width // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "max_position_embeddings": 8192,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": False,
    }
    family = FAMILIES.get(TINY_BACKBONES[name])
    entries = text
    if family is not None:
        entries, _ = family.tiny(TinySize(width, heads, vision_layers))
        entries["text_config"] = text | entries["text_config"]
        entries |= {
            key: tokenizer.convert_tokens_to_ids(token) for key, token in family.tokens.items()
        }
    config = AutoConfig.for_model(TINY_BACKBONES[name], **entries)
    # What `initialise` leaves as transformers drew it is a function of the seed too.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = kind.from_config(config)
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
