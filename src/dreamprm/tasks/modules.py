"""Tasks: modules that a config names, imported when it is read; and a run of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dreamprm.config.plugins import absolute, load_module, load_plugins
from dreamprm.config.reading import read_config, read_keys
from dreamprm.errors import UserError
from dreamprm.method_names import check_built_in
from dreamprm.tasks.config import BilevelConfig, RunConfig

BUILT_IN = ("hyper_cleaning", "noisy_labels", "prm", "weight_decay")  # modules of dreamprm.tasks


def load_config(config: str, overrides: Sequence[str] = ()) -> Any:
    """Reads the config of a run, of whatever task, and checks every value of it.

    The modules under ``plugins`` are imported first, then the task.

    Args:
        config: a path, or the name of a shipped config.
        overrides: ``key=value``, dots for what is nested.

    Returns:
        a ``Config`` of the task's module.

    Raises:
        UserError: see :func:`~dreamprm.config.reading.read_config`; or a module cannot be imported,
            or is no task.
    """
    found = read_keys(config, overrides, ("task", "plugins", "hypergradient"))
    folder = Path(config).parent if Path(config).is_file() else Path()
    task = found.get("task", RunConfig.task)
    # Before the seconds that torch takes; without it nothing else can have been registered yet.
    if task in BUILT_IN and not found.get("plugins") and "torch" not in sys.modules:
        check_built_in(found, config)
    load_plugins(found.get("plugins") or [], folder)
    module = find_task(task, folder)
    schema = module.Config
    if not (isinstance(schema, type) and issubclass(schema, BilevelConfig)):
        raise UserError(f"task {task}: its Config is no dataclass on dreamprm.tasks.RunConfig")
    result = read_config(config, list(overrides), schema, lambda made, where: made.check(where))
    # The run keeps its config elsewhere.
    result.task = absolute(result.task, folder)
    result.plugins = [absolute(name, folder) for name in result.plugins]
    return result


def train(config: BilevelConfig, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Runs a config and writes its run directory; the same as ``dreamprm train``.

    Args:
        config: of the run, as :func:`load_config` gives it or made in Python.
        resume: continue a run that was interrupted; starts anew where there is none.
        overwrite: replace a run that is there.

    Returns:
        what ``summary.json`` holds: ``runs``, for each weighting its numbers; ``weights`` by group;
        and the task's own facts.

    Raises:
        UserError: the config, the data or the run directory is not as it must be.
        FloatingPointError: a number is not finite.
    """
    # Torch and more, which reading a config does not need.
    from dreamprm.engines.run import run_task

    return run_task(config, find_task(config.task), resume, overwrite)


def find_task(name: str, folder: Path = Path()) -> ModuleType:
    """The module of a task.

    Args:
        name: of a built-in task or of a module, or the path of a .py file.
        folder: that relative paths are taken from, before the working directory.

    Raises:
        UserError: there is none, it cannot be imported, or it has no ``Config`` or ``build``.
    """
    if isinstance(name, str) and name in BUILT_IN:
        return import_module(f"dreamprm.tasks.{name}")
    module = load_module(name, "task", folder, BUILT_IN)
    for part in ("Config", "build"):
        if not hasattr(module, part):
            raise UserError(
                f"task {name} has no {part}; a task has Config and build: docs/tasks.md"
            )
    return module
