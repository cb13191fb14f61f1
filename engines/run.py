"""A run of any task, from its config to a run directory with all that came out of it."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from dreamprm.config.reading import refuse_missing
from dreamprm.engines.base import Engine
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.reporting import write_report
from dreamprm.run_directory.names import (
    BASELINE,
    CONFIG_FILE,
    LABELS_FILE,
    ROWS_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
)
from dreamprm.run_directory.opening import RunDirectory, open_run, refuse_many_processes
from dreamprm.words import Words
from dreamprm.writing import write_whole

log = logging.getLogger("dreamprm")

ENDS = 20  # rows with the lowest weights, and with the highest, whose text is kept


class Task(Protocol):
    """What a task's ``build(config, run)`` gives: data that are read, and what is made of them.

    It may also have ``begin(run)``, called once nothing more can be found wrong, which writes what
    the task keeps in the run directory, and ``keep``, the folders of the run directory that it has
    written to before.

    Attributes:
        digests: of the data, by the name of the part; a run goes on with the same ones only.
        words: in which the report and the tables speak.
    """

    digests: dict[str, str]
    words: Words

    def engine(self, config: Any, folder: Path) -> Engine:
        """The engine of one run: the one of the config, or its baseline."""

    def end(self, engine: Any, folder: Path) -> Mapping[str, float | None]:
        """Writes what is kept of a run that has ended, and gives its numbers."""

    def facts(self) -> Mapping[str, Any]:
        """What the summary says beside the numbers."""


def run_task(
    config: Any, module: Any, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Runs a config and writes its run directory.

    Args:
        config: of the run, a ``dreamprm.tasks.BilevelConfig``.
        module: of the task, or what else has ``build(config, run)``, which gives a :class:`Task`.
        resume: continue a run that was interrupted; starts anew where there is none.
        overwrite: replace a run that is there.

    Returns:
        what ``summary.json`` holds: ``runs``, for each weighting its numbers; ``weights`` by group,
        none where the task weights nothing; and the task's own facts.

    Raises:
        UserError: the config, the data or the run directory is not as it must be.
        FloatingPointError: a number is not finite.
    """
    refuse_many_processes()
    refuse_missing(OmegaConf.structured(config), "the config")
    config.check("the config")
    out = Path(config.out)
    with open_run(out, config, resume, overwrite) as run:
        built: Task = module.build(config, run)
        if not hasattr(built, "engine"):
            raise UserError(
                f"build of the task gave {built!r}, expected what has engine, end and facts, such "
                "as a ReweightingTask: docs/tasks.md"
            )
        engine = _engine(built, config, out, run)
        if run.continues:
            _resume(engine)
        run.begin(keep=getattr(built, "keep", ()))
        if hasattr(built, "begin"):
            built.begin(run)
        numbers, weights = _run(built, engine, out)
        runs = {config.run_name: numbers}
        if config.baseline and (plain := config.plain()).run_name != config.run_name:
            engine = _engine(built, plain, out / BASELINE, run)
            _resume(engine)
            alone, _ = _run(built, engine, out / BASELINE)
            runs = {plain.run_name: alone} | runs
        summary = {
            "config": str(out / CONFIG_FILE),
            "hypergradient": config.hypergradient,
            "seed": config.seed,
            "runs": runs,
            "weights": weights,
            **built.facts(),
            "data": built.digests,
            "versions": _versions(),
        }
        run.check()
        _write_json(out / SUMMARY_FILE, summary)
        write_report(out)
    return summary


def _engine(task: Task, config: Any, folder: Path, run: RunDirectory) -> Engine:
    engine = task.engine(config, folder)
    engine.digests, engine.words = dict(task.digests), task.words
    engine.check = run.check  # type: ignore[method-assign]
    return engine


def _resume(engine: Engine) -> None:
    if engine.resume():
        log.info("%s continues after step %d", engine.config.run_directory, engine.global_step)


def _run(task: Task, engine: Engine, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains; gives the numbers of the run, and the weights by group."""
    engine.run()
    engine.check()
    numbers = dict(task.end(engine, folder))
    if not isinstance(engine, ReweightingEngine):
        return numbers, {}
    weights = engine.weights()
    if weights:
        _write_json(folder / WEIGHTS_FILE, weights)
    by_row = engine.row_weights()
    if by_row is not None and engine.rows is not None:
        _write_rows(folder, engine.rows, by_row.tolist())
    labels = engine.row_labels()
    if labels is not None and engine.rows is not None:
        lines = [
            json.dumps({"id": name, "given": given, "corrected": corrected})
            for name, (given, corrected) in zip(engine.rows.names(), labels, strict=True)
        ]
        write_whole(folder / LABELS_FILE, lines)
    return numbers, weights


def _write_rows(folder: Path, rows: Any, weights: Sequence[float]) -> None:
    """The weight of every row by its name, and the rows at both ends with their text."""
    names = rows.names()
    _write_json(folder / WEIGHTS_FILE, dict(zip(names, weights, strict=True)))
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    ends = order if len(order) <= 2 * ENDS else order[:ENDS] + order[-ENDS:]
    lines = [json.dumps({"id": names[i], "weight": weights[i], "text": rows.text(i)}) for i in ends]
    write_whole(folder / ROWS_FILE, lines)


def _versions() -> dict[str, str]:
    """What the numbers were made with."""
    names = ("dreamprm", "torch", "transformers", "betty-ml")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        bad = [k for k, v in value.items() if isinstance(v, float) and not math.isfinite(v)]
        what = f": {bad[0]!r} is {value[bad[0]]}" if bad else ""
        raise FloatingPointError(f"{path} would not be finite{what}") from error
    write_whole(path, [text])
