"""An optimizer is taken as it is: what it cannot do for its problem is said at the start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dreamprm.errors import UserError

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem

log = logging.getLogger("dreamprm")


def check_optimizer(problem: Problem) -> None:
    """Warns of trainable parameters that a problem's optimizer does not hold.

    Raises:
        UserError: there is no optimizer, or the problem defines groups that betty would give it.
    """
    if problem.is_implemented("param_groups"):
        raise UserError(
            f"problem {problem.name!r} defines param_groups(), which is not used: "
            "give the groups to the optimizer"
        )
    if problem.optimizer is None:
        raise UserError(f"problem {problem.name!r} has no optimizer")
    held = {id(p) for group in problem.optimizer.param_groups for p in group["params"]}
    named = problem.module.named_parameters()
    left_out = [name for name, p in named if p.requires_grad and id(p) not in held]
    if left_out:
        log.warning(
            "the optimizer of problem %r does not hold %d of its trainable parameters, %s the "
            "first: hypergradients count them as variables unless they are frozen",
            problem.name,
            len(left_out),
            left_out[0],
        )
