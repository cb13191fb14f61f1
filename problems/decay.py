"""Weight decay that an optimizer adds by itself, which the Hessian of a loss as written lacks."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from dreamprm.errors import UserError
from dreamprm.hypergradients import resolve
from dreamprm.hypergradients.updates import damping_of_decay

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem

log = logging.getLogger("dreamprm")


def say_decay(problem: Problem) -> None:
    """Says which damping of a problem's hypergradient stands for its optimizer's weight decay.

    Nothing where the optimizer has none, the method no damping, or the user gave one.
    """
    config, optimizer = problem.config, problem.optimizer
    decays = [group["weight_decay"] for group in optimizer.param_groups if "weight_decay" in group]
    if "damping" not in resolve(config.type).options or "damping" in config.options:
        return
    if not any(decays):
        return
    remedy = "a damping can stand for it"
    with suppress(UserError):  # of other optimizers, and of options that are not written out
        damping = damping_of_decay(optimizer, problem.trainable_parameters())
        remedy = f"damping={damping:.2g} puts it back"
        if any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
            remedy += ", on average over the parameters as they are now"
    log.warning(
        "hypergradient %s of problem %r: the Hessian is that of the loss, without the weight decay "
        "(%s) that %s adds by itself: %s",
        config.type,
        problem.name,
        ", ".join(f"{decay:g}" for decay in dict.fromkeys(decays)),
        type(optimizer).__name__,
        remedy,
    )
