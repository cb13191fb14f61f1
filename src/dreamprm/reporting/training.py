"""The sections on the training: weights and their paths, losses, validation, fidelity."""

from __future__ import annotations

from dataclasses import dataclass, field

from dreamprm.reporting.content import Cell, Plot, Table, compact, number, plot_of
from dreamprm.reporting.losses import STEP, losses
from dreamprm.reporting.plots import Level, Line
from dreamprm.reporting.row_weights import distribution, ends_table
from dreamprm.reporting.run import Run, series
from dreamprm.words import Words, capital, plural

NAMED = 10  # groups that the plot of the weights names; half of them the highest
FAINT = 60  # other groups whose paths it draws
ROWS = 16  # groups that the table shows at once
VALIDATION_LINES = 10


@dataclass(frozen=True)
class WeightsSection:
    """The learned weights: what they are and how they came to be, or how they are distributed."""

    table: Table
    plot: Plot | None
    note: str = ""


@dataclass(frozen=True)
class TrainingSection:
    """The numbers logged on the way."""

    plots: list[Plot] = field(default_factory=list)
    final: Table | None = None
    notes: list[str] = field(default_factory=list)


def weights_section(run: Run) -> WeightsSection | None:
    """None where there are no weights."""
    if not run.weights:
        return None
    if run.rows is not None:
        plot, quantiles = distribution(list(run.weights.values()), run.words)
        return WeightsSection(ends_table(run.rows, run.words), plot, quantiles)
    group, groups = run.words.group, plural(run.words.group)
    qualities = run.summary.get("qualities") or {}
    order = sorted(run.weights, key=lambda name: (-run.weights[name], name))
    paths = {name: series(run.metrics, f"weights/{name}") for name in order}
    rows: list[list[Cell]] = []
    for name in order:
        values = [*_start(run), *paths[name][1]] or [run.weights[name]]
        rows.append(
            [
                name,
                *([str(qualities.get(name, "–")).replace("_", " ")] if qualities else []),
                number(run.weights[name], ".3f"),
                number(min(values), ".3f"),
                number(max(values), ".3f"),
            ]
        )
    header = [group, *(["known quality"] if qualities else []), "weight"]
    table = Table(
        f"Weights of {len(order):,} {groups} at the end, and their range over the run"
        if run.finished or run.trained
        else f"Weights of {len(order):,} {groups} so far, and their range",
        [*header, "lowest", "highest"],
        rows[:ROWS],
        rows[ROWS:],
        key="weights",
    )
    return WeightsSection(table, _weight_paths(run, paths, group))


def _start(run: Run) -> list[float]:
    """What every weight is before the first step, where that is known."""
    return [1.0] if run.learned else []


def _weight_paths(
    run: Run, paths: dict[str, tuple[list[float], list[float]]], group: str
) -> Plot | None:
    logged = [name for name, (steps, _) in paths.items() if steps]
    if not logged:
        return None
    named, others = logged, []
    if len(logged) > NAMED:
        half = NAMED // 2
        named, others = logged[:half] + logged[-half:], logged[half:-half]
    start = _start(run)

    def line(title: str, name: str) -> Line:
        steps, values = paths[name]
        return Line(title, [*(0.0 for _ in start), *steps], [*start, *values])

    lines = [line(name, name) for name in named]
    drawn = others[:: max(1, -(-len(others) // FAINT))]
    faint = [line("", name) for name in drawn]
    caption = f"Each {group}'s weight; the dashed line is 1"
    caption += ", at which all start, and their mean." if run.learned else "."
    if others:
        caption += (
            f" Named: the {half} highest and the {half} lowest at the end; faint: "
            f"{len(drawn)} of the {len(others):,} others."
        )
    return plot_of(
        "paths",
        f"{capital(group)} weights over training",
        lines,
        STEP,
        f"{group} weight",
        caption,
        levels=[Level("uniform weight", 1.0)],
        faint=faint,
        table_key="paths",
    )


def training_section(run: Run) -> TrainingSection:
    """Losses at both levels, validation, fidelity, and the last of every logged number."""
    notes: list[str] = []
    plots = [*losses(run), *_validation(run)]
    fidelity = _fidelity(run)
    if fidelity:
        plots.append(fidelity)
    elif run.weights and run.learned:
        notes.append(
            "The fidelity of the hypergradient was not logged in this run; "
            "fidelity.every=100 logs it."
        )
    return TrainingSection(plots, _final(run), notes)


def _validation(run: Run) -> list[Plot]:
    baseline = {name for row in run.baseline for name in row}
    plain = "uniform" if run.words.plain == Words.plain else run.words.plain
    selected: list[Line] = []
    others: list[Line] = []
    meanings = []
    for name in run.names(start="validation/"):
        short = name.removeprefix("validation/")
        label = run.words.title(short)
        lines = selected if "best_of_" in short else others
        lines.append(Line(label, *series(run.metrics, name)))
        if name in baseline:
            lines.append(Line(f"{label}, {plain}", *series(run.baseline, name)))
        metric = run.words.metrics.get(short)
        if metric is not None and metric.meaning:
            meanings.append(f" {capital(metric.title)}: {metric.meaning}.")
    kinds = (
        ("Validation", others, f"Measured at every validation.{''.join(meanings)}"),
        ("Selection over training", selected, "Share of questions answered right when the "
         f"best-scored of so many {plural(run.words.sample)} is picked, none of which the lower "
         "level trains on."),
    )  # fmt: skip
    return [
        plot_of(
            title.split()[0].lower(),
            title,
            lines[:VALIDATION_LINES],
            STEP,
            "value",
            caption,
            table_key="validation",
        )
        for title, lines, caption in kinds
        if lines
    ]


def _fidelity(run: Run) -> Plot | None:
    names = [*run.names("/hypergradient_cosine"), *run.names("/hypergradient_error")]
    if not names:
        return None
    labels = {
        "cosine": "cosine to the exact product (best: 1)",
        "error": "relative error (best: 0)",
    }
    lines = [Line(labels[name.rsplit("_", 1)[1]], *series(run.metrics, name)) for name in names]
    return plot_of(
        "fidelity",
        "Fidelity of the hypergradient",
        lines,
        STEP,
        "cosine, error",
        "The hypergradient that was used against the one by exact products in full precision, "
        "at the same point.",
        table_key="fidelity",
    )


def _final(run: Run) -> Table | None:
    last: dict[str, tuple[float, float]] = {}
    for row in run.metrics:
        for name, value in row.items():
            if name != "step" and not name.startswith("weights/"):
                last[name] = (row["step"], value)
    if not last:
        return None
    rows: list[list[Cell]] = [
        [name, number(step, ".0f"), compact(value)] for name, (step, value) in last.items()
    ]
    return Table("The last of every logged number", ["name", "step", "value"], rows, key="final")
