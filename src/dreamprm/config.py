"""Every key of a config, and how a config is read: OmegaConf over these dataclasses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamprm.errors import UserError, unknown_name

Schema = TypeVar("Schema")


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
    """What is trained on. Paths are relative to the working directory."""

    # canonical, dreamprm-train, dreamprm-meta, math-vision, gsm8k-solutions
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


CHOICES = {
    "meta_loss": ("pairwise", "calibrated", "aggregation_mse"),
    "step_loss": ("squared_error", "cross_entropy"),
    "weighting": ("domain_table", "uniform"),
    "precision": ("fp32", "bf16"),
    "device": ("default", "cpu", "gpu"),
    "model.readout": ("marker", "vocabulary", "generative", "conversation", "prefix"),
    "data.labels": ("steps", "outcome"),
    "data.sampling": ("balanced", "proportional", "temperature"),
    "data.streaming": ("auto", "always", "never"),
    "data.images": ("require", "skip_missing", "ignore"),
    "lower.schedule": ("constant", "linear", "cosine", "step"),
    "upper.schedule": ("constant", "linear", "cosine", "step"),
    "early_stopping.mode": ("min", "max"),
}
AT_LEAST_ONE = (
    "steps",
    "unroll_steps",
    "log_every",
    "validate_every",
    "lower.batch_size",
    "upper.batch_size",
    "lower.accumulate",
    "upper.accumulate",
    "data.max_tokens",
    "lower.decay_every",
    "upper.decay_every",
    "model.tiny.layers",
    "model.tiny.vision_layers",
    "model.tiny.max_pixels",
)


def shipped_configs() -> list[str]:
    """Names of the configs that come with the package."""
    folder = resources.files("dreamprm.configs")
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_config(config: str, overrides: list[str]) -> Config:
    """Reads the config of a run and checks every value of it; see :func:`read_config`."""
    return read_config(config, overrides, Config, _check)


def read_config(
    config: str,
    overrides: list[str],
    schema: type[Schema],
    check: Callable[[Any, str], None],
) -> Schema:
    """Reads a config and checks every value of it.

    Args:
        config: a path, or the name of a shipped config.
        overrides: ``key=value``, dots for what is nested.
        schema: the dataclass whose fields are the keys.
        check: refuses values out of their range; takes the config and its name for messages.

    Raises:
        UserError: the file is missing, or a key is not known, or a value is of the wrong type or
            out of its range; the message names file, key, what was found and what was expected.
    """
    text, where = _read(config)
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where} holds {type(found).__name__}, expected keys and values")
    merged = OmegaConf.structured(schema)
    _refuse_unknown(found, schema, where)
    merged = _merge(merged, OmegaConf.create(found), where)
    for override in overrides:
        _key, equals, _ = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not of the form key=value")
        _refuse_unknown(OmegaConf.to_container(_dotlist(override)), schema, f"{override!r}")
        merged = _merge(merged, _dotlist(override), f"{override!r}")
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"{where} gives no value for {', '.join(missing)}")
    check(merged, where)
    result = OmegaConf.to_object(merged)
    assert isinstance(result, schema)
    return result


def check_values(
    config: Any, where: str, choices: Mapping[str, Sequence[str]], at_least_one: Sequence[str]
) -> None:
    """Refuses a value that is none of its key's choices, and a number below 1.

    Raises:
        UserError: names the key and what was found.
    """
    for key, known in choices.items():
        value = OmegaConf.select(config, key)
        if value not in known:
            raise UserError(f"{where}: " + unknown_name(f"value of {key}", str(value), known))
    for key in at_least_one:
        value = OmegaConf.select(config, key)
        if value < 1:
            raise UserError(f"{where}: {key} is {value}, expected at least 1")


def read_options(words: list[str]) -> dict[str, Any]:
    """``key=value`` words as a dict, values read as in YAML.

    Raises:
        UserError: a word cannot be read so.
    """
    return {
        str(key): value
        for word in words
        for key, value in (OmegaConf.to_container(_dotlist(word)) or {}).items()  # type: ignore[union-attr]
    }


def save_config(config: Config, path: Path) -> None:
    """Writes a config with every value resolved."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _read(config: str) -> tuple[str, str]:
    path = Path(config)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"there is no config file {config}")
        try:
            return path.read_text(encoding="utf-8"), config
        except UnicodeDecodeError as error:
            raise UserError(f"{config} is not UTF-8 text: {error}") from error
    if config not in shipped_configs():
        raise UserError(unknown_name("config", config, shipped_configs()))
    return (resources.files("dreamprm.configs") / f"{config}.yaml").read_text(), config


def _dotlist(override: str) -> Any:
    try:
        return OmegaConf.from_dotlist([override])
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{override!r} cannot be read: {_first_line(error)}") from error


def _merge(base: Any, change: Any, where: str) -> Any:
    try:
        return OmegaConf.merge(base, change)
    except (OmegaConfBaseException, TypeError) as error:  # the latter for a list for a mapping
        key = getattr(error, "full_key", None)
        at = f" at {key}" if key else ""
        raise UserError(f"{where}{at}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _refuse_unknown(found: Any, schema: type, where: str, prefix: str = "") -> None:
    """Names the nearest right key for one that does not exist."""
    if not isinstance(found, dict):
        return
    known = {f.name: f for f in fields(schema)}
    for key, value in found.items():
        if key not in known:
            full = [prefix + name for name in known]
            raise UserError(f"{where}: " + unknown_name("key", f"{prefix}{key}", full))
        inner = known[key].default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            _refuse_unknown(value, inner, where, f"{prefix}{key}.")


def _check(config: Any, where: str) -> None:
    check_values(config, where, CHOICES, AT_LEAST_ONE)
    if config.weighting != "uniform" and config.steps < config.unroll_steps:
        raise UserError(
            f"{where}: steps is {config.steps} and unroll_steps {config.unroll_steps}: "
            "the upper level would never take a step"
        )
    for key in (
        "seed",
        "checkpoint_every",
        "fidelity.every",
        "observe.questions",
        "observe.solutions",
        "observe.samples",
        "hypergradient_batch_size",
        "model.lora.rank",
        "model.vision_cache_gb",
        "lower.weight_decay",
        "upper.weight_decay",
        "lower.warmup_steps",
        "upper.warmup_steps",
        "early_stopping.patience",
        "lower.clip",
        "upper.clip",
    ):
        value = OmegaConf.select(config, key)
        if value < 0:
            raise UserError(f"{where}: {key} is {value}, expected at least 0")
    for key in ("data.meta_share", "data.test_share"):
        value = OmegaConf.select(config, key)
        if not 0 <= value < 1:
            raise UserError(f"{where}: {key} is {value}, expected at least 0 and less than 1")
    temperature = config.data.temperature
    if (config.data.sampling == "temperature") != (temperature is not None):
        raise UserError(
            f"{where}: data.sampling is {config.data.sampling} and data.temperature "
            f"{temperature}: the one needs the other"
        )
    if temperature is not None and not temperature > 0:
        raise UserError(f"{where}: data.temperature is {temperature}, expected more than 0")
    dropout = config.model.lora.dropout
    if not 0 <= dropout < 1:
        raise UserError(
            f"{where}: model.lora.dropout is {dropout}, expected at least 0 and less than 1"
        )
    if not config.model.lora.alpha > 0:
        raise UserError(
            f"{where}: model.lora.alpha is {config.model.lora.alpha}, expected more than 0"
        )
    if config.model.max_pixels is not None and config.model.max_pixels < 1:
        raise UserError(
            f"{where}: model.max_pixels is {config.model.max_pixels}, expected at least 1"
        )
    if config.lower.max_tokens is not None:
        if config.data.sampling != "proportional":
            raise UserError(
                f"{where}: lower.max_tokens fills batches by length, whatever the domain: "
                "set data.sampling=proportional"
            )
        if config.lower.max_tokens < config.data.max_tokens:
            raise UserError(
                f"{where}: lower.max_tokens is {config.lower.max_tokens}, expected at least "
                f"data.max_tokens, {config.data.max_tokens}"
            )
    if config.upper.max_tokens is not None:
        raise UserError(f"{where}: upper.max_tokens is not for the upper level: batch_size is")
    for level in ("lower", "upper"):
        size, parts = (
            OmegaConf.select(config, f"{level}.{k}") for k in ("batch_size", "accumulate")
        )
        if size % parts:
            raise UserError(
                f"{where}: {level}.accumulate is {parts}, expected a divisor of "
                f"{level}.batch_size, {size}"
            )
        rate = OmegaConf.select(config, f"{level}.learning_rate")
        if not rate > 0:
            raise UserError(f"{where}: {level}.learning_rate is {rate}, expected more than 0")
    if not re.search(r"\S", config.out):
        raise UserError(f"{where}: out is empty, expected a folder for the run")
