"""betty's environments: what an engine hands to its problems, as the task of an episode."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from betty.envs import Env

from dreamprm.errors import UserError
from dreamprm.problems.base import Problem

log = logging.getLogger("dreamprm")


def check_environment(env: Any, problems: Sequence[Problem]) -> None:
    """Refuses what is no environment of betty, and says where a problem would see one task only.

    betty steps an upper problem at every micro-batch, each after an inner loop of its own. Here all
    micro-batches of a step are drawn at once, so that they are of the environment's one task.

    Raises:
        UserError: the environment is not betty's, or has an attribute with a problem's name.
    """
    if env is None:
        return
    if not isinstance(env, Env):
        raise UserError(
            f"the engine got a {type(env).__module__}.{type(env).__name__} for env, "
            "expected a betty.envs.Env"
        )
    for problem in problems:
        if hasattr(env, problem.name):
            raise UserError(
                f"a problem is named {problem.name!r}, expected a name that no attribute of the "
                "environment has"
            )
        if problem.config.gradient_accumulation > 1:
            log.warning(
                "problem %r draws the %d micro-batches of a step at once: those of an environment "
                "are of one task, not of an inner loop each",
                problem.name,
                problem.config.gradient_accumulation,
            )
