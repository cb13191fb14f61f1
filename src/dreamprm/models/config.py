"""The keys of a process reward model."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class TinyConfig:
    """A backbone of random weights (dreamprm.models.tiny)."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    vision_layers: int = 1
    vocabulary: int = 1024
    max_pixels: int = 12544  # of an image; 112 × 112


@dataclass
class LoraConfig:
    """Low-rank adapters in the place of training the backbone; the readout is trained in full."""

    rank: int = 0  # of every adapter; 0 for none
    alpha: float = 16.0  # an adapter's product is scaled by alpha / rank
    dropout: float = 0.0  # of an adapter's input, in training
    # Names of linear layers, e.g. [q_proj, v_proj]; none for all that are not frozen.
    targets: list[str] = field(default_factory=list)
    # Saved as part of the weights; else on their own, and the backbone by its name.
    merge: bool = True


@dataclass
class ModelConfig:
    """The process reward model."""

    # A folder or hub name, or for random weights a name of dreamprm.models.tiny, as tiny-qwen2-vl.
    backbone: str = MISSING
    # marker: a linear map of the hidden state at each step's marker; vocabulary: of the vocabulary
    # logits there (the DreamPRM paper); generative: the log-odds of two words there; conversation:
    # the same with every step a chat turn (VisualPRM, DreamPRM-1.5); prefix: vocabulary with every
    # prefix a chat turn of its own (the published code); network: a small network in the place of
    # the linear map. docs/models.md
    readout: str = "marker"
    widths: list[int] = field(default_factory=list)  # of the hidden layers of network
    # Layers of the backbone that marker and network read, side by side: from 1, or from -1 at the
    # end; none for the last one.
    layers: list[int] = field(default_factory=list)
    # The token that ends each step, or a text of one token, as "\n\n"; a new token if need be.
    step_marker: str = "<|step|>"
    positive: str = "+"  # words of generative and conversation, one token each
    negative: str = "-"
    system: str | None = None  # message of conversation and prefix
    # Images are scaled to at most this many pixels; the backbone's own limit where not given.
    max_pixels: int | None = None
    freeze_vision: bool = False
    # The backbone stays as it is: what it says of a solution is computed once and kept in the
    # cache; the readout alone is trained. docs/models.md
    freeze_backbone: bool = False
    frozen_precision: str | None = None  # in which it then runs, fp32 or bf16; by default the run's
    # Host memory for the features of a frozen vision tower, which then sees every image once; the
    # images beyond are computed every time. 0 for none.
    vision_cache_gb: float = 2.0
    # Keep the inputs of the layers only and compute the rest anew when it is needed: memory for
    # one more forward pass.
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    tiny: TinyConfig = field(default_factory=TinyConfig)
