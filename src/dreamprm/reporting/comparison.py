"""Several runs beside each other: numbers, weights, paths, and where their configs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dreamprm.inference.tables import COLUMNS
from dreamprm.reporting.content import Cell, Plot, Table, number, plot_of
from dreamprm.reporting.evaluation import Evaluation
from dreamprm.reporting.judgement import EvaluationSection, evaluation_section
from dreamprm.reporting.plots import Line
from dreamprm.reporting.run import Run, series
from dreamprm.reporting.training import STEP

LINES = 10  # runs that a plot can tell apart
ROWS = 20


@dataclass(frozen=True)
class Comparison:
    """What the page of several runs shows."""

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
    return Comparison(
        _outcomes(labels, runs),
        _weights(labels, runs),
        _plots(labels, runs),
        _differences(labels, runs),
        evaluation_section(evaluation) if evaluation else None,
    )


def _outcomes(labels: list[str], runs: Sequence[Run]) -> Table | None:
    rows: list[tuple[str, dict[str, Any]]] = []
    for label, run in zip(labels, runs, strict=True):
        for name, numbers in (run.summary.get("runs") or {}).items():
            if isinstance(numbers, dict) and numbers:
                rows.append((label if name != "uniform" else f"{label}, uniform weights", numbers))
    columns = [key for key in COLUMNS if any(r.get(key) is not None for _, r in rows)]
    if not columns:
        return None
    cells: list[list[Cell]] = [
        [label, *(number(numbers.get(key)) for key in columns)] for label, numbers in rows
    ]
    return Table("On each run's test set", ["run", *(COLUMNS[k] for k in columns)], cells,
                 key="summary")  # fmt: skip


def _weights(labels: list[str], runs: Sequence[Run]) -> Table | None:
    names = sorted({name for run in runs for name in run.weights})
    if not names:
        return None

    def highest(name: str) -> float:
        return max(run.weights.get(name, float("-inf")) for run in runs)

    names.sort(key=lambda name: (-highest(name), name))
    rows: list[list[Cell]] = [
        [name, *(number(run.weights.get(name), ".3f") for run in runs)] for name in names
    ]
    return Table("Domain weights at the end", ["domain", *labels], rows[:ROWS], rows[ROWS:],
                 key="weights")  # fmt: skip


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
