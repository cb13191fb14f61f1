"""What a run's config says of its two levels: their problems, their optimizers, the engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch.optim import AdamW

from dreamprm.engines.base import EngineConfig
from dreamprm.hypergradients import resolve
from dreamprm.hypergradients.interface import STEPS
from dreamprm.problems.config import ProblemConfig
from dreamprm.tasks.config import BilevelConfig, OptimizerConfig

log = logging.getLogger("dreamprm")


def lower_config(config: BilevelConfig) -> ProblemConfig:
    """Of the lower problem, by whose method the upper one sees through it."""
    return ProblemConfig(
        type=config.hypergradient,
        options=config.hypergradient_options,
        fidelity_every=config.fidelity.every,
        unroll_steps=config.unroll_steps,
        warmup_steps=config.cold_start,
        precision=config.precision,
        gradient_clipping=config.lower.clip,
        gradient_accumulation=config.lower.accumulate,
        hypergradient_batch_size=_hypergradient_batch_size(config),
    )


def upper_config(config: BilevelConfig) -> ProblemConfig:
    """Of the upper problem."""
    return ProblemConfig(
        precision=config.precision,
        gradient_clipping=config.upper.clip,
        gradient_accumulation=config.upper.accumulate,
    )


def engine_config(config: BilevelConfig, folder: Path) -> EngineConfig:
    """What a run's config says of the engine."""
    return EngineConfig(
        train_iters=config.steps,
        valid_step=config.validate_every,
        strategy=config.device,
        early_stopping=config.early_stopping.patience > 0,
        early_stopping_metric=config.early_stopping.metric,
        early_stopping_mode=config.early_stopping.mode,
        early_stopping_tolerance=max(1, config.early_stopping.patience),
        run_directory=folder,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        progress="learned" if config.learned else config.run_name,
    )


def adamw(parameters: Any, config: OptimizerConfig) -> AdamW:
    """AdamW over what is trained, which may be nothing."""
    trained = [{"params": [p for p in parameters if p.requires_grad]}]
    return AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)


def _hypergradient_batch_size(config: BilevelConfig) -> int:
    """0, for all, where the method goes through the steps that were taken."""
    size = config.hypergradient_batch_size
    if size and STEPS in resolve(config.hypergradient).needs:
        log.warning(
            "hypergradient=%s differentiates the steps that were taken, with all of their batches: "
            "hypergradient_batch_size=%d is not for it",
            config.hypergradient,
            size,
        )
        return 0
    return size
