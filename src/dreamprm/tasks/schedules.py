"""Learning-rate schedules by name."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

from dreamprm.errors import UserError
from dreamprm.tasks.config import OptimizerConfig


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: int) -> LRScheduler:
    """The schedule that a config asks for, over ``steps`` optimizer steps.

    ``linear`` and ``cosine`` decay to 0 after the warm-up; ``step`` halves (or what ``gamma``
    says) every ``decay_every`` steps, as the DreamPRM paper does.

    Raises:
        UserError: a warm-up is asked of ``step``, which has none.
    """
    if config.schedule == "step":
        if config.warmup_steps:
            raise UserError("schedule: step has no warm-up; set warmup_steps to 0")
        return StepLR(optimizer, config.decay_every, config.gamma)
    from transformers import get_scheduler  # seconds, which the checks of a config do not wait for

    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return get_scheduler(name, optimizer, config.warmup_steps, steps)
