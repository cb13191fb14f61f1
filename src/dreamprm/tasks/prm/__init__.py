"""DreamPRM: a process reward model, and the weights of the domains that it is trained on."""

from typing import TYPE_CHECKING

from dreamprm.tasks.prm.config import Config

if TYPE_CHECKING:
    from dreamprm.run_directory.opening import RunDirectory
    from dreamprm.tasks.prm.task import PRMTask

__all__ = ["Config", "build"]


def build(config: Config, run: "RunDirectory") -> "PRMTask":
    """Reads the data of a run; see :class:`~dreamprm.tasks.prm.task.PRMTask`."""
    from dreamprm.tasks.prm.task import PRMTask  # seconds, which a config is read without

    return PRMTask(config, run)
