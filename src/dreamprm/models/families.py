"""What differs between the families of backbones: the one place that knows their names.

A vision-language family is a row of ``FAMILIES``: the text that stands for an image, what the
forward call takes and how it is put together for a batch, where the vision tower is, how a limit on
an image's pixels is set, and the sizes of a tiny model. Text-only causal models need none of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dreamprm.errors import UserError


@dataclass(frozen=True)
class Family:
    """What is particular to one family of vision-language backbones.

    Args:
        text: the text of an image from its placeholder, what the image processor gave, the
            backbone's config and the processor; as in the family's joint processor.
        inputs: for each keyword of the forward call, how the images of a batch become one tensor
            (a name of ``dreamprm.models.images.JOINS``).
        tower: the name of the vision tower in the backbone.
        image_processor: its class, the one that needs no torchvision.
        limit_pixels: sets the most pixels of an image, on the image processor and the config.
        tiny: the entries of a tiny model's config, and of its image processor.
        around: text before and after an image outside a chat template.
        options: of the call of the image processor.
        token_types: whether the forward call takes ``mm_token_type_ids``, 1 at an image.
        alone_differs: whether an image is read otherwise where its question has others.
        features: what the backbone reads of the vision tower's output, from the config.
        tokens: special tokens of a tiny tokenizer, by the config's entry for their ids.
        words: more of them, which no entry names.
    """

    text: Callable[[str, Any, Any, Any], str]
    inputs: dict[str, str]
    tower: str
    image_processor: str
    limit_pixels: Callable[[Any, Any, int], None]
    tiny: Callable[[TinySize], tuple[dict[str, Any], dict[str, Any]]]
    tokens: dict[str, str]
    words: tuple[str, ...] = ()
    around: tuple[str, str] = ("", "")
    options: dict[str, Any] = field(default_factory=dict)
    token_types: bool = False
    alone_differs: bool = False
    features: Callable[[Any], tuple[str, ...]] = lambda config: ("last_hidden_state",)


@dataclass(frozen=True)
class TinySize:
    """Sizes of a tiny backbone."""

    width: int
    heads: int
    vision_layers: int

    @property
    def vision(self) -> dict[str, int]:
        """Entries that most vision configs have."""
        width = 2 * self.width // 3 // 16 * 16
        return {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": 4,
        }


# Qwen-VL: an image is a grid of patches, merge_size² of which are one token.


def _qwen_text(token: str, found: Any, config: Any, processor: Any) -> str:
    return token * (int(found["image_grid_thw"].prod()) // processor.merge_size**2)


def _qwen_limit(processor: Any, config: Any, pixels: int) -> None:
    processor.size = dict(processor.size) | {"longest_edge": pixels}


def _mrope(size: TinySize) -> dict[str, Any]:
    half = size.width // size.heads // 2
    spatial = 3 * half // 8
    sections = [half - 2 * spatial, spatial, spatial]
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}


def _qwen2_tiny(size: TinySize) -> tuple[dict[str, Any], dict[str, Any]]:
    vision = {"depth": size.vision_layers, "embed_dim": size.vision["hidden_size"]}
    vision |= {"hidden_size": size.width, "num_heads": 4, "mlp_ratio": 2}
    return {"text_config": {"rope_parameters": _mrope(size)}, "vision_config": vision}, {}


def _qwen2_5_tiny(size: TinySize) -> tuple[dict[str, Any], dict[str, Any]]:
    # Two merged patches on a side of a window; the last layer looks at the whole image.
    vision = size.vision | {
        "out_hidden_size": size.width,
        "window_size": 56,
        "fullatt_block_indexes": [size.vision_layers - 1],
    }
    return {"text_config": {"rope_parameters": _mrope(size)}, "vision_config": vision}, {}


def _qwen3_tiny(size: TinySize) -> tuple[dict[str, Any], dict[str, Any]]:
    vision = size.vision | {
        "out_hidden_size": size.width,
        "patch_size": 14,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {"rope_parameters": _mrope(size), "head_dim": size.width // size.heads}
    return {"text_config": text, "vision_config": vision}, {}


# InternVL: an image is cut into square tiles, with a small copy of the whole as the last one.


def _internvl_text(token: str, found: Any, config: Any, processor: Any) -> str:
    vision = config.vision_config
    side = int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)
    return f"<img>{token * (side**2 * int(found['num_patches'].sum()))}</img>"


def _internvl_features(config: Any) -> tuple[str, ...]:
    return ("last_hidden_state",) if config.vision_feature_layer == -1 else ("hidden_states",)


def _internvl_limit(processor: Any, config: Any, pixels: int) -> None:
    size = processor.size
    processor.max_patches = max(1, pixels // (size["height"] * size["width"]))


def _internvl_tiny(size: TinySize) -> tuple[dict[str, Any], dict[str, Any]]:
    vision = size.vision | {"image_size": [_TILE, _TILE], "patch_size": [14, 14]}
    text = {"text_config": {"model_type": "qwen2"}, "vision_config": vision}
    return text | {"image_seq_length": 4}, {"size": {"height": _TILE, "width": _TILE}}


# LLaVA-OneVision: the image padded to a square; where it is the only one of its question also cut
# into tiles, whose padding is dropped, with a token at the end of each line.


def _llava_text(token: str, found: Any, config: Any, processor: Any) -> str:
    from transformers.models.llava_onevision import modeling_llava_onevision as llava

    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    count = side**2 - (config.vision_feature_select_strategy == "default")
    if len(found["image_sizes"]) > 1:
        return token * (count + 1)
    size = found["image_sizes"][0].tolist()
    rows, columns = llava.get_anyres_image_grid_shape(
        size, config.image_grid_pinpoints, vision.image_size
    )
    canvas = torch.empty(0, rows * side, columns * side, device="meta")
    height, width = llava.unpad_image(canvas, size).shape[1:]
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(height * width / (most * side**2))
    if ratio > 1.1:
        height, width = int(height // ratio), int(width // ratio)
    return token * (count + height * (width + 1))


def _llava_limit(processor: Any, config: Any, pixels: int) -> None:
    sizes = sorted(processor.image_grid_pinpoints, key=math.prod)
    kept = [size for size in sizes if math.prod(size) <= pixels] or sizes[:1]
    # The backbone works out the tiles from its own copy.
    processor.image_grid_pinpoints = config.image_grid_pinpoints = kept


def _llava_tiny(size: TinySize) -> tuple[dict[str, Any], dict[str, Any]]:
    vision = size.vision | {
        "model_type": "siglip_vision_model",
        "image_size": _TILE,
        "patch_size": 28,
        "vision_use_head": False,
    }
    canvases = {"image_grid_pinpoints": [[a * _TILE, b * _TILE] for a in (1, 2) for b in (1, 2)]}
    text = {"text_config": {"model_type": "qwen2"}, "vision_config": vision}
    return text | canvases, {"size": {"height": _TILE, "width": _TILE}} | canvases


# SmolVLM and Idefics3: square tiles in rows and columns, each with its place in words, and a small
# copy of the whole as the last one.


_FAKE = "<fake_token_around_image>"


def _smolvlm_text(token: str, found: Any, config: Any, processor: Any) -> str:
    vision = config.vision_config
    image = token * (int((vision.image_size // vision.patch_size) ** 2 / config.scale_factor**2))
    (((rows,),), ((columns,),)) = found["rows"], found["cols"]
    text = "".join(
        "".join(f"{_FAKE}<row_{r + 1}_col_{c + 1}>{image}" for c in range(columns)) + "\n"
        for r in range(rows)
    )
    text += "\n" if rows else ""
    return f"{text}{_FAKE}<global-img>{image}{_FAKE}"


def _smolvlm_limit(processor: Any, config: Any, pixels: int) -> None:
    tile = processor.max_image_size["longest_edge"]
    processor.size = {"longest_edge": max(tile, math.isqrt(pixels) // tile * tile)}


def _smolvlm_tiny(size: TinySize) -> tuple[dict[str, Any], dict[str, Any]]:
    vision = size.vision | {"image_size": _TILE, "patch_size": 14}
    text = {"text_config": {"model_type": "llama"}, "vision_config": vision, "scale_factor": 2}
    sizes = {"size": 2 * _TILE, "max_image_size": _TILE}
    return text, {key: {"longest_edge": size} for key, size in sizes.items()}


_TILE = 56  # pixels on a side of a tiny model's tile, 4 tokens; 28 × 28 pixels a token, as Qwen-VL

QWEN_TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def _qwen(
    tiny: Callable[[TinySize], tuple[dict[str, Any], dict[str, Any]]], *features: str
) -> Family:
    return Family(
        text=_qwen_text,
        inputs={"pixel_values": "cat", "image_grid_thw": "cat"},
        tower="visual",
        image_processor="Qwen2VLImageProcessorPil",
        limit_pixels=_qwen_limit,
        tiny=tiny,
        tokens=QWEN_TOKENS,
        around=("<|vision_start|>", "<|vision_end|>"),
        token_types=True,
        features=lambda config: ("pooler_output", *features),
    )


def _smolvlm(image_processor: str) -> Family:
    return Family(
        text=_smolvlm_text,
        inputs={"pixel_values": "pad_rows", "pixel_attention_mask": "pad_rows"},
        tower="vision_model",
        image_processor=image_processor,
        limit_pixels=_smolvlm_limit,
        tiny=_smolvlm_tiny,
        tokens={"image_token_id": "<image>"},
        words=(_FAKE, "<global-img>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))),
        options={"return_row_col_info": True},
    )


FAMILIES = {  # by the config's model_type
    "qwen2_vl": _qwen(_qwen2_tiny),
    "qwen2_5_vl": _qwen(_qwen2_5_tiny),
    "qwen3_vl": _qwen(_qwen3_tiny, "deepstack_features"),
    "internvl": Family(
        text=_internvl_text,
        inputs={"pixel_values": "cat"},
        tower="vision_tower",
        image_processor="GotOcr2ImageProcessorPil",
        limit_pixels=_internvl_limit,
        tiny=_internvl_tiny,
        tokens={"image_token_id": "<IMG_CONTEXT>"},
        words=("<img>", "</img>"),
        options={"crop_to_patches": True},
        features=_internvl_features,
    ),
    "llava_onevision": Family(
        text=_llava_text,
        inputs={"pixel_values": "pad_tiles", "image_sizes": "cat", "batch_num_images": "count"},
        tower="vision_tower",
        image_processor="LlavaOnevisionImageProcessorPil",
        limit_pixels=_llava_limit,
        tiny=_llava_tiny,
        tokens={"image_token_index": "<image>", "video_token_index": "<video>"},
        alone_differs=True,
        features=lambda config: ("hidden_states",),
    ),
    "smolvlm": _smolvlm("SmolVLMImageProcessorPil"),
    "idefics3": _smolvlm("Idefics3ImageProcessorPil"),
}


def family_of(config: Any) -> Family | None:
    """The family of a backbone; None for a text-only one.

    Raises:
        UserError: the backbone reads images, but its family is not in the table.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    if getattr(config, "vision_config", None) is None:
        return None
    raise UserError(
        f"backbones of type {config.model_type!r} are not supported; "
        f"expected a text-only one or one of {', '.join(FAMILIES)}"
    )
