"""What a run directory holds, read and checked for a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dreamprm.errors import UserError
from dreamprm.evaluation.reading import read_evaluation
from dreamprm.evaluation.result import Evaluation
from dreamprm.reporting.examples import Example, read_examples
from dreamprm.reporting.row_weights import WeightedRow, read_weighted_rows
from dreamprm.run_directory.metrics import read_metrics
from dreamprm.run_directory.names import (
    BASELINE,
    CONFIG_FILE,
    EVALUATION_FILE,
    EXAMPLES_FILE,
    METRICS_FILE,
    ROWS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
)
from dreamprm.words import Words, is_number, words_from_json

Found = TypeVar("Found")


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        folder: as it was given.
        metrics: the rows of ``metrics.jsonl``.
        baseline: the same of the run with uniform weights, if there is one.
        config, config_text: of ``config.yaml``; empty where there is none.
        summary: of ``summary.json``; empty where there is none yet, or never will be.
        weights: by group, or by row where there are ``rows``; empty where there are none.
        rows: those at both ends of the weights, where single rows have one.
        words: what its task calls its things.
        trained: whether its engine came to its end.
        learned: whether it had an upper level.
        steps: to its end, and ``step``, how far its engine noted that it is; 0 for not known.
        examples: scored solutions; None where none were kept.
        evaluation: what ``dreamprm evaluate`` found, if it was asked.
    """

    folder: Path
    metrics: list[dict[str, float]]
    baseline: list[dict[str, float]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    rows: list[WeightedRow] | None = None
    words: Words = field(default_factory=Words)
    trained: bool = False
    learned: bool = True
    steps: int = 0
    step: int = 0
    examples: list[Example] | None = None
    evaluation: Evaluation | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def last_step(self) -> int:
        """The last one that was logged or noted."""
        return max(self.step, int(max((row["step"] for row in self.metrics), default=0)))

    @property
    def finished(self) -> bool:
        """Whether all is there: a run of a config ends with its summary, another when trained."""
        return bool(self.summary) or (self.trained and not self.config)

    @property
    def weighted(self) -> str:
        """What has a weight of its own."""
        return self.words.group if self.rows is None else self.words.sample

    @property
    def selects(self) -> bool:
        """Whether its model picks one of several samples, which is what an evaluation is of."""
        kept = self.examples is not None or self.evaluation is not None
        return kept or "best_of_n" in self.words.metrics

    def names(self, ending: str = "", start: str = "") -> list[str]:
        """Logged names with such an ending and start, in the order of their first appearance."""
        found = dict.fromkeys(name for row in self.metrics for name in row)
        return [name for name in found if name.endswith(ending) and name.startswith(start)]


def series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The steps at which a value was logged, and the values."""
    kept = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in kept], [value for _, value in kept]


def read_run(folder: str | Path, evaluation: str | Path | None = None) -> Run:
    """Reads a run directory; of its files ``metrics.jsonl`` alone has to be there.

    Args:
        folder: written by ``train``, ``demo`` or any engine with a ``run_directory``.
        evaluation: a file of ``dreamprm evaluate``; None for the run's own, if there is one.

    Raises:
        UserError: it is no run directory, or a file in it is not what it must be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run directory {folder}")
    if not (folder / METRICS_FILE).is_file():
        raise UserError(f"{folder} is no run directory: it has no {METRICS_FILE}")
    summary = _optional(folder / SUMMARY_FILE, _read_object) or {}
    for key in ("runs", "weights", "qualities"):
        if not isinstance(summary.get(key) or {}, dict):
            raise UserError(f"{folder / SUMMARY_FILE}: {key} is no object")
    weights = _optional(folder / WEIGHTS_FILE, _read_object) or {}
    for name, value in weights.items():
        if not is_number(value):
            raise UserError(
                f"{folder / WEIGHTS_FILE}: the weight of {name!r} is {value!r}, expected a number"
            )
    metrics = read_metrics(folder)
    if not weights:  # the run is under way
        start = "weights/"
        last = next((r for r in reversed(metrics) if any(k.startswith(start) for k in r)), {})
        weights = {k.removeprefix(start): v for k, v in last.items() if k.startswith(start)}
    about = _optional(folder / RUN_FILE, _read_about) or {}
    config_text = _optional(folder / CONFIG_FILE, _read_text) or ""
    return Run(
        folder=folder,
        metrics=metrics,
        baseline=read_metrics(folder / BASELINE),
        config=_config(config_text, folder / CONFIG_FILE),
        config_text=config_text,
        summary=summary,
        weights=weights,
        rows=_optional(folder / ROWS_FILE, read_weighted_rows),
        **about,
        examples=_optional(folder / EXAMPLES_FILE, read_examples),
        evaluation=read_evaluation(Path(evaluation))
        if evaluation is not None
        else _optional(folder / EVALUATION_FILE, read_evaluation),
    )


def _optional(path: Path, read: Callable[[Path], Found]) -> Found | None:
    return read(path) if path.is_file() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, expected an object")
    return found


def _read_about(path: Path) -> dict[str, Any]:
    """What an engine notes of its run, as fields of it."""
    found = _read_object(path)
    for key, kind in (("steps", int), ("step", int), ("finished", bool), ("learned", bool)):
        if not isinstance(found.get(key, kind()), kind):
            raise UserError(f"{path}: {key} is {found[key]!r}, expected {kind.__name__}")
    return {
        "words": words_from_json(found.get("words", {}), str(path)),
        "trained": found.get("finished", False),
        "learned": found.get("learned", True),
        "steps": found.get("steps", 0),
        "step": found.get("step", 0),
    }


def _config(text: str, path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, expected keys and values")
    return found
