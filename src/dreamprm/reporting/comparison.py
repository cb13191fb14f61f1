"""Several runs beside each other: numbers, weights, paths, and where their configs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dreamprm.evaluation.result import Evaluation
from dreamprm.reporting.content import Cell, Plot, Table, number, plot_of
from dreamprm.reporting.judgement import EvaluationSection, evaluation_section
from dreamprm.reporting.losses import STEP
from dreamprm.reporting.outcome import value_of
from dreamprm.reporting.plots import Line
from dreamprm.reporting.run import Run, series
from dreamprm.words import Words, capital, union

LINES = 10  # runs that a plot can tell apart
ROWS = 20


@dataclass(frozen=True)
class Comparison:
    """What the page of several runs shows, in words that fit all of them."""

    words: Words
    outcomes: Table | None
    weights: Table | None
    plots: list[Plot] = field(default_factory=list)
    differences: Table | None = None
    evaluation: EvaluationSection | None = None


def labels_of(runs: Sequence[Run]) -> list[str]:
    """The runs' names, with their paths where names are equal."""
    names = [run.name for run in runs]
    labels = [str(r.folder) if names.count(n) > 1 else n for r, n in zip(runs, names, strict=True)]
    # The same folder twice, written in one way.
    return [
        f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)
    ]


def compare(runs: Sequence[Run], evaluation: Evaluation | None = None) -> Comparison:
    """Puts runs beside each other.

    Args:
        runs: two or more.
        evaluation: of their models, on the same data.
    """
    labels = labels_of(runs)
    words = union([run.words for run in runs])
    return Comparison(
        words,
        _outcomes(labels, runs, words),
        _weights(labels, runs, words),
        _plots(labels, runs),
        _differences(labels, runs),
        evaluation_section(evaluation) if evaluation else None,
    )


def _outcomes(labels: list[str], runs: Sequence[Run], words: Words) -> Table | None:
    rows: list[tuple[str, dict[str, Any]]] = []
    for label, run in zip(labels, runs, strict=True):
        for name, numbers in (run.summary.get("runs") or {}).items():
            if isinstance(numbers, dict) and numbers:
                plain = f"{label}, {run.words.plain}"
                rows.append((plain if name == "uniform" else label, numbers))
    columns = words.shown(numbers for _, numbers in rows)
    if not columns:
        return None
    cells: list[list[Cell]] = [
        [label, *(value_of(numbers, key) for key in columns)] for label, numbers in rows
    ]
    header = ["run", *map(words.title, columns)]
    title = f"On each run's {words.test}" if words.test else "At the end of each run"
    return Table(title, header, cells, key="summary")


def _weights(labels: list[str], runs: Sequence[Run], words: Words) -> Table | None:
    # Single rows may be a million, and each run's report has those at both ends.
    weights = [run.weights if run.rows is None else {} for run in runs]
    names = sorted({name for found in weights for name in found})
    if not names:
        return None

    def highest(name: str) -> float:
        return max(found.get(name, float("-inf")) for found in weights)

    names.sort(key=lambda name: (-highest(name), name))
    rows: list[list[Cell]] = [
        [name, *(number(found.get(name), ".3f") for found in weights)] for name in names
    ]
    caption = f"{capital(words.group)} weights at the end"
    return Table(caption, [words.group, *labels], rows[:ROWS], rows[ROWS:], key="weights")


def _plots(labels: list[str], runs: Sequence[Run]) -> list[Plot]:
    every = list(dict.fromkeys(n for run in runs for n in run.names()))
    wanted = [n for n in every if n.endswith("/loss") or n.startswith("validation/")]
    plots = []
    for index, name in enumerate(wanted):
        having = [(lb, r) for lb, r in zip(labels, runs, strict=True) if name in r.names()]
        lines = [Line(label, *series(run.metrics, name)) for label, run in having[:LINES]]
        caption = f"Logged as {name}."
        if len(having) > LINES:
            caption += f" The first {LINES} of {len(having)} runs."
        title = name.replace("/", ": ").replace("_", " ")
        plots.append(
            plot_of(f"compared-{index}", title, lines, STEP, "value", caption, table_key=name)
        )
    return plots


def _differences(labels: list[str], runs: Sequence[Run]) -> Table | None:
    flat = [_flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows: list[list[Cell]] = [
        [key, *(config.get(key, "–") for config in flat)]
        for key in keys
        if len({config.get(key) for config in flat}) > 1
    ]
    if not rows:
        return None
    return Table("Where the configs differ", ["key", *labels], rows, key="differences")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = "none" if value is None else str(value)
    return values
