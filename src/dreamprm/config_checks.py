"""What the values of a run's config may be."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from dreamprm.config_reading import check_values
from dreamprm.errors import UserError

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


def check_run(config: Any, where: str) -> None:
    """Refuses a run's config whose values are out of range, or do not go together.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
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
    if not config.out.strip():
        raise UserError(f"{where}: out is empty, expected a folder for the run")
