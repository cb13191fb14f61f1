"""The keys of a run of DreamPRM, and what their values may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dreamprm.config.checking import check_choices, check_numbers, value_of
from dreamprm.data.config import DataConfig
from dreamprm.errors import UserError
from dreamprm.models.config import ModelConfig
from dreamprm.tasks.config import PRECISIONS, EarlyStoppingConfig, OptimizerConfig, RunConfig


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
class LowerConfig(OptimizerConfig):
    """AdamW and its schedule for the reward model."""

    # Micro-batches of solutions of similar length, with at most so many tokens each, padding
    # included; batch_size is then the most solutions. With data.sampling: proportional.
    max_tokens: int | None = None


@dataclass
class StoppingConfig(EarlyStoppingConfig):
    """When to stop before the last step: by the meta set, unless told otherwise."""

    metric: str = "outcome_auc"


@dataclass
class Config(RunConfig):
    """One run of DreamPRM."""

    # pairwise, calibrated, aggregation_mse (DreamPRM), probability_mse (DreamPRM-1.5): of outcomes;
    # step_pairwise, step_cross_entropy: of step labels that the meta set has
    meta_loss: str = "pairwise"
    meta_loss_options: dict[str, Any] = field(default_factory=dict)  # calibrated: ridge
    step_loss: str = "squared_error"  # or cross_entropy
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lower: LowerConfig = field(default_factory=LowerConfig)
    early_stopping: StoppingConfig = field(default_factory=StoppingConfig)

    # Where the data lie may change: what they are is in the checkpoint.
    FREE: ClassVar[tuple[str, ...]] = (
        *RunConfig.FREE,
        *("observe", "data.root", "data.train", "data.meta", "data.test"),
    )

    def check(self, where: str) -> None:
        """Refuses values that are out of range, or do not go together."""
        # Makes step_network known; needs torch, as all registries do.
        import dreamprm.tasks.prm.step_network  # noqa: F401

        super().check(where)
        check_prm(self, where)


def check_prm(config: Config, where: str) -> None:
    """Refuses values of a reward model's keys.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    # The registries need torch, which help and reading a file do not.
    from dreamprm.models.readouts import READOUTS
    from dreamprm.problems.meta_losses import meta_loss_named
    from dreamprm.problems.step_losses import STEP_LOSSES

    check_choices(
        config,
        where,
        {
            "step_loss": STEP_LOSSES,
            "model.readout": READOUTS,
            "data.labels": ("steps", "outcome"),
            "data.sampling": ("balanced", "proportional", "temperature"),
            "data.streaming": ("auto", "always", "never"),
            "data.images": ("require", "skip_missing", "ignore"),
        },
    )
    try:
        meta_loss_named(config.meta_loss, config.meta_loss_options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    tiny = [f"model.tiny.{name}" for name in ("layers", "vision_layers", "max_pixels")]
    observed = [f"observe.{name}" for name in ("questions", "solutions", "samples")]
    check_numbers(config, where, 1, ("data.max_tokens", *tiny))
    check_numbers(config, where, 0, (*observed, "model.lora.rank", "model.vision_cache_gb"))
    for key in ("data.meta_share", "data.test_share"):
        value = value_of(config, key)
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
    if config.model.frozen_precision is not None:
        check_choices(config, where, {"model.frozen_precision": PRECISIONS})
        if not config.model.freeze_backbone:
            raise UserError(f"{where}: model.frozen_precision needs model.freeze_backbone=true")
    if config.model.freeze_backbone:
        for key in ("model.lora.rank", "model.gradient_checkpointing", "lower.max_tokens"):
            if value_of(config, key):
                raise UserError(
                    f"{where}: {key} is {value_of(config, key)}, for a backbone that runs at every "
                    "step: with model.freeze_backbone it does not"
                )
    if any(width < 1 for width in config.model.widths):
        raise UserError(f"{where}: model.widths is {config.model.widths}, expected 1 and more")
    if config.model.widths and not READOUTS[config.model.readout].has_widths:
        raise UserError(
            f"{where}: model.widths is {config.model.widths}, for model.readout=network; found "
            f"{config.model.readout}"
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
