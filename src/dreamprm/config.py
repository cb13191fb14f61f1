"""Every key of a run's config, with what it means and its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dreamprm.config_checks import check_run
from dreamprm.config_reading import read_config


@dataclass
class SyntheticConfig:
    """The built-in domains (dreamprm.data.synthetic), drawn into the run directory."""

    # Quality of each domain, by its name; none means that data come from files.
    domains: dict[str, str] = field(default_factory=dict)
    solutions: int = 1500  # per domain
    meta: int = 400  # solutions of the meta set
    questions: int = 150  # of the test set
    candidates: int = 8  # per test question


@dataclass
class DataConfig:
    """What is trained on."""

    # The folder that relative paths of train, meta and test are taken from; itself relative to the
    # working directory.
    root: str = "."
    # Of the files of `train`: canonical, gsm8k-solutions, or any other that docs/data.md lists;
    # auto: told by each file's first rows.
    format: str = "canonical"
    # Files, patterns of file names such as parts/*.jsonl, and hub:NAME or hub:NAME:SPLIT.
    train: list[str] = field(default_factory=list)
    # Solutions with an outcome each. Without files: the share `meta_share` of the questions of
    # `train`, held out.
    meta: list[str] = field(default_factory=list)
    meta_format: str = "canonical"
    meta_share: float = 0.0
    # Questions with candidates to choose from, canonical. Without files: the share `test_share`
    # of the questions of `train`, held out, each with all its solutions as candidates.
    test: list[str] = field(default_factory=list)
    test_share: float = 0.0
    # steps: as they are in the data; outcome: a step without a label takes its solution's outcome.
    labels: str = "steps"
    # A control: this domain once more as "NAME-shuffled", with the outcomes shuffled.
    shuffled_copy: str | None = None
    # require: a missing image is an error; skip_missing: it is left out; ignore: text only.
    images: str = "require"
    # Longer solutions are left out, and counted.
    max_tokens: int = 2048
    # How often a domain of n solutions is drawn: balanced, as often as any other, in every batch;
    # proportional, n; temperature, n^(1 / data.temperature).
    sampling: str = "balanced"
    temperature: float | None = None
    # Where training solutions are: never on disk alone, always, or auto: where their files have
    # more than 128 MiB, or come from the hub. docs/data.md
    streaming: str = "auto"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


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
    # prefix a chat turn of its own (the published code). docs/models.md
    readout: str = "marker"
    step_marker: str = "<|step|>"  # the token that ends each step; a new one if need be
    positive: str = "+"  # words of generative and conversation, one token each
    negative: str = "-"
    system: str | None = None  # message of conversation and prefix
    # Images are scaled to at most this many pixels; the backbone's own limit where not given.
    max_pixels: int | None = None
    freeze_vision: bool = False
    # Host memory for the features of a frozen vision tower, which then sees every image once; the
    # images beyond are computed every time. 0 for none.
    vision_cache_gb: float = 2.0
    # Keep the inputs of the layers only and compute the rest anew when it is needed: memory for
    # one more forward pass.
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    tiny: TinyConfig = field(default_factory=TinyConfig)


@dataclass
class OptimizerConfig:
    """AdamW and its schedule, for one level."""

    learning_rate: float = MISSING
    weight_decay: float = 0.0
    batch_size: int = MISSING  # of a step
    # Micro-batches that a step is computed in, one after the other. What compares samples with
    # each other (pairwise, the means over a domain's steps) does so within a micro-batch.
    accumulate: int = 1
    # Lower level: micro-batches of solutions of similar length, with at most so many tokens each,
    # padding included; batch_size is then the most solutions. With data.sampling: proportional.
    max_tokens: int | None = None
    schedule: str = "constant"  # constant, linear, cosine, step
    warmup_steps: int = 0
    decay_every: int = 5000  # steps, for schedule: step
    gamma: float = 0.5  # factor at each decay, for schedule: step
    clip: float = 0.0  # largest norm of a gradient; 0 for no limit


@dataclass
class EarlyStoppingConfig:
    """When to stop before the last step."""

    patience: int = 0  # validations without getting better; 0 for never
    metric: str = "outcome_auc"  # of the validation
    mode: str = "max"


@dataclass
class FidelityConfig:
    """Comparing the hypergradient with the one by exact products, during training."""

    # Lower-level steps between two comparisons; 0 for none. Each costs one more hypergradient.
    every: int = 0


@dataclass
class ObserveConfig:
    """What every validation looks at beside the meta set, for TensorBoard and the report."""

    # Test questions (without a test set, of the meta set) whose best of N is logged; 0 for none.
    questions: int = 25
    # Training solutions of every domain whose step scores make its histogram; 0 for none.
    solutions: int = 8
    # Solutions of the meta set that are drawn with image and scored steps; 0 for none.
    samples: int = 3


@dataclass
class Config:
    """One run."""

    seed: int = 0
    steps: int = MISSING  # of the lower level
    unroll_steps: int = 5  # steps of the lower level for one of the upper
    # How the upper level sees through the lower one: a name that `dreamprm hypergradients` lists,
    # or solver+product. identity takes the product that is right for the precision.
    hypergradient: str = "identity"
    hypergradient_options: dict[str, Any] = field(default_factory=dict)  # e.g. iterations, alpha
    # At most so many solutions of the last lower batch are what the hypergradient is taken on; 0
    # for all.
    hypergradient_batch_size: int = 0
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    # pairwise, calibrated, aggregation_mse
    meta_loss: str = "pairwise"
    meta_loss_options: dict[str, Any] = field(default_factory=dict)  # calibrated: ridge
    step_loss: str = "squared_error"  # or cross_entropy
    # domain_table: learned; uniform: every domain 1, no upper level.
    weighting: str = "domain_table"
    # Also train with uniform weights, on the same batches, to compare with.
    baseline: bool = True
    out: str = MISSING  # the run directory
    precision: str = "fp32"  # or bf16: autocast over fp32 parameters
    device: str = "default"  # a GPU where there is one; cpu; gpu
    log_every: int = 10  # steps
    validate_every: int = 200  # steps
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    checkpoint_every: int = 200  # steps
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lower: OptimizerConfig = field(default_factory=OptimizerConfig)
    upper: OptimizerConfig = field(default_factory=OptimizerConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)


def load_config(config: str, overrides: list[str]) -> Config:
    """Reads the config of a run and checks every value of it; see :func:`read_config`."""
    return read_config(config, overrides, Config, check_run)
