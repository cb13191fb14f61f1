"""A task that has run for a few steps, as cases on which hypergradient methods are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamprm.engines.comparison import case_of
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.hypergradients.comparison import Case
from dreamprm.run_directory.opening import open_run
from dreamprm.tasks.modules import find_task, load_config

STEPS = 60
# A learning rate of 0 at the end of a schedule would end sama too.
BRIEFLY = (
    *(f"steps={STEPS}", f"validate_every={STEPS}", "lower.schedule=constant", "device=cpu"),
    *("cold_start=0", "out=briefly"),
)


def brief_config(config: str, overrides: Sequence[str] = ()) -> Any:
    """A config for a few steps.

    Args:
        config: a path, or the name of a shipped config.
        overrides: ``key=value``, after those of ``BRIEFLY``.

    Raises:
        UserError: as :func:`load_config`, or no weights are learned.
    """
    found = load_config(config, [*BRIEFLY, *overrides])
    if not found.has_hypergradient:
        raise UserError(f"{config}: {found.run_name} learns nothing: there is no hypergradient")
    return found


@contextmanager
def run_briefly(config: Any, progress: str | None = None) -> Iterator[ReweightingEngine]:
    """The engine of a config that has run, in a folder that is deleted afterwards.

    Args:
        config: of a run; its ``out`` is not used.
        progress: what the progress bar is called; None shows none.

    Raises:
        UserError: the data are not as they must be.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        config = replace(config, out=str(out))
        with open_run(out, config, resume=False, overwrite=False) as run:
            engine = find_task(config.task).build(config, run).engine(config, out)
            engine.config.progress = progress
            engine.run()
            yield engine


def cases_of(engine: ReweightingEngine, name: str) -> list[Case]:
    """An engine that has run, in fp32 and under bf16 autocast."""
    return [case_of(engine, f"{name}, fp32"), case_of(engine, f"{name}, bf16", autocast=True)]
