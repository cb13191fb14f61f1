"""Tasks: what a researcher writes, a module with ``Config`` and ``build`` each; docs/tasks.md.

What is named here is imported when it is first asked for, so that a config is read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamprm.engines.run import Task
    from dreamprm.tasks.columns import Columns
    from dreamprm.tasks.config import BilevelConfig, RunConfig
    from dreamprm.tasks.reweighting import ReweightingTask
    from dreamprm.words import Metric, Words

_HOMES = {
    "BilevelConfig": "dreamprm.tasks.config",
    "Columns": "dreamprm.tasks.columns",
    "Metric": "dreamprm.words",
    "ReweightingTask": "dreamprm.tasks.reweighting",
    "RunConfig": "dreamprm.tasks.config",
    "Task": "dreamprm.engines.run",
    "Words": "dreamprm.words",
}

__all__ = ["BilevelConfig", "Columns", "Metric", "ReweightingTask", "RunConfig", "Task", "Words"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamprm.tasks' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
