"""Higher-order meta-learning on betty: DreamPRM and other bi-level reweighting tasks.

What is named here is imported when it is first asked for, so that ``import dreamprm`` and the
command line's help do not wait for transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dreamprm.errors import UserError

if TYPE_CHECKING:
    from dreamprm.data.formats import load_questions, load_trajectories
    from dreamprm.data.trajectory import Trajectory
    from dreamprm.evaluation.evaluate import evaluate
    from dreamprm.hypergradients import hypergradient
    from dreamprm.models.reward_model import ProcessRewardModel
    from dreamprm.scoring.selection import select
    from dreamprm.tasks.modules import load_config, train

_HOMES = {
    "ProcessRewardModel": "dreamprm.models.reward_model",
    "Trajectory": "dreamprm.data.trajectory",
    "evaluate": "dreamprm.evaluation.evaluate",
    "hypergradient": "dreamprm.hypergradients",
    "load_config": "dreamprm.tasks.modules",
    "load_questions": "dreamprm.data.formats",
    "load_trajectories": "dreamprm.data.formats",
    "select": "dreamprm.scoring.selection",
    "train": "dreamprm.tasks.modules",
}

__all__ = [
    "ProcessRewardModel",
    "Trajectory",
    "UserError",
    "evaluate",
    "hypergradient",
    "load_config",
    "load_questions",
    "load_trajectories",
    "select",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamprm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
