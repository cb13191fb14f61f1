"""Opening a run directory: the one process that writes to it, and when a run begins.

Nothing of a run that is there goes before the one that replaces it is known to start; a kill at any
moment leaves the old run whole, or the new one, which ``--resume`` continues.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamprm.config.reading import config_values, read_values, save_config
from dreamprm.errors import UserError
from dreamprm.run_directory.lock import LOCK_FILE, Lock, locked
from dreamprm.run_directory.names import BUILT_IN, CONFIG_FILE, FILES, FOLDERS, RUN_FILE
from dreamprm.writing import PARTIAL, write_whole, writing

log = logging.getLogger("dreamprm")

# The config of a run whose predecessor is being deleted.
NEXT_CONFIG = "config.next.yaml"
# What a start that failed or was killed leaves where there is no run.
LEFTOVERS = (BUILT_IN, LOCK_FILE, *(name + PARTIAL for name in (CONFIG_FILE, NEXT_CONFIG)))


class RunDirectory:
    """A run directory that this process alone writes to; see :func:`open_run`.

    Attributes:
        path: of the folder.
        continues: whether there is a run in it that goes on.
    """

    def __init__(self, lock: Lock, config: Any, continues: bool) -> None:
        self.path, self.continues = lock.folder, continues
        self._lock, self._config = lock, config
        self.begun = False

    def begin(self, keep: Sequence[str] = ()) -> None:
        """Makes the folder that of the config, once nothing more can be found wrong.

        Args:
            keep: folders of the run that is replaced which the new one has written to already.

        Raises:
            UserError: it cannot be written to.
        """
        self.check()
        if not self.continues and (self.path / CONFIG_FILE).is_file():
            save_config(self._config, self.path / NEXT_CONFIG)
            _finish_replacing(self.path, keep)
        else:
            save_config(self._config, self.path / CONFIG_FILE)
        self.begun = True

    def check(self) -> None:
        """Refuses to go on in a folder that is no longer the one that the run began in.

        Raises:
            UserError: it was removed or replaced.
        """
        if not self._lock.holds():
            raise UserError(
                f"{self.path} was removed or replaced while the run wrote to it: the run ends here"
            )


@contextmanager
def open_run(out: Path, config: Any, resume: bool, overwrite: bool) -> Iterator[RunDirectory]:
    """Locks a run directory and refuses to lose what is in it; until ``begin`` all of it stays.

    Args:
        out: the folder; made if need be, and removed again where the run does not begin.
        config: the run's, a dataclass whose ``FREE`` are the keys, with dots, that may differ
            between a run and its continuation.
        resume: continue a run that was interrupted; starts anew where there is none.
        overwrite: replace a run that is there.

    Raises:
        UserError: it is no folder for this run, or another process writes to it.
    """
    inside = _holder(out)
    if inside is not None:
        raise UserError(f"{out} lies inside the run {inside}, which writes there itself")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder for the run")
    made = _make(out)
    try:
        with locked(out) as lock:
            run = RunDirectory(lock, config, _prepare(out, config, resume, overwrite))
            try:
                yield run
            finally:
                if not run.begun and not (out / CONFIG_FILE).is_file():
                    shutil.rmtree(out / BUILT_IN, ignore_errors=True)
    finally:
        for folder in made:  # the innermost first, as long as nothing is in it
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def note_run(folder: Path, about: dict[str, Any]) -> None:
    """Writes ``run.json``: ``words``, in which a run is told of; ``step``, how far of its ``steps``
    it is; whether it is ``finished``, and whether an upper level has ``learned``."""
    write_whole(folder / RUN_FILE, [json.dumps(about)])


def refuse_many_processes() -> None:
    """Refuses to run where a launcher has started several processes, which would write one run.

    Raises:
        UserError: ``WORLD_SIZE``, which torchrun sets, is more than 1.
    """
    size = os.environ.get("WORLD_SIZE", "1").strip()
    if size not in ("", "0", "1"):
        raise UserError(
            f"WORLD_SIZE is {size}: torchrun has started so many processes, expected one; "
            "start dreamprm without torchrun"
        )


def _prepare(out: Path, config: Any, resume: bool, overwrite: bool) -> bool:
    """Whether there is a run that goes on; refuses what would lose one."""
    if (out / NEXT_CONFIG).is_file():
        _finish_replacing(out, ())
    if (out / CONFIG_FILE).is_file():
        if resume:
            _refuse_changes(out / CONFIG_FILE, config)
        elif not overwrite:
            raise UserError(
                f"{out} holds a run: --resume continues it, --overwrite replaces it, "
                "out=DIR starts another"
            )
        return resume
    if resume:
        log.info("%s holds no run to continue: it begins", out)
    foreign = sorted(path.name for path in out.iterdir() if path.name not in LEFTOVERS)
    if foreign:
        raise UserError(f"{out} holds {foreign[0]}, which is of no run: expected an empty folder")
    return False


def _holder(out: Path) -> Path | None:
    """The run directory that has the folder as one of its own, if there is one."""
    path = out.absolute()
    for folder, part in zip(path.parents, (path, *path.parents), strict=False):
        if part.name in FOLDERS and (folder / CONFIG_FILE).is_file():
            return folder
    return None


def _finish_replacing(out: Path, keep: Sequence[str]) -> None:
    """Deletes the old run and puts the new config in the place of its own, which goes last."""
    with writing(out):
        for name in FOLDERS:
            if name not in keep and (out / name).exists():
                shutil.rmtree(out / name)
        for name in FILES:
            if name != CONFIG_FILE:
                (out / name).unlink(missing_ok=True)
        os.replace(out / NEXT_CONFIG, out / CONFIG_FILE)


def _refuse_changes(saved: Path, config: Any) -> None:
    """A resumed run must be the same experiment, but for what is free."""
    before, now = read_values(saved), config_values(config)
    for key in config.FREE:
        _leave_out(before, key)
        _leave_out(now, key)
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{saved} differs from this config in {', '.join(changed)}: "
            "resume with the same values, or give another out="
        )


def _leave_out(values: Any, key: str) -> None:
    """Takes a key, with dots, out of nested dicts; there may be none."""
    above, _, below = key.partition(".")
    if isinstance(values, dict):
        if below:
            _leave_out(values.get(above), below)
        else:
            values.pop(above, None)


def _make(out: Path) -> list[Path]:
    """Makes a folder; gives those that were not there, the innermost first."""
    with writing(out):
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
    return made
