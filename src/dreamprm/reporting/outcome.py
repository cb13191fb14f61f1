"""The sections on what came out: the summary, selection by N, step metrics, reliability."""

from __future__ import annotations

from dataclasses import dataclass, field

from dreamprm.inference.tables import COLUMNS
from dreamprm.reporting.content import Cell, Number, Plot, Table, Tile, number, plot_of
from dreamprm.reporting.evaluation import Estimate, Evaluation
from dreamprm.reporting.plots import Line
from dreamprm.reporting.run import Run

LABELS = {"domain_table": "learned weights", "uniform": "uniform weights"}
SELECTION_LINES = 8
MEANINGS = {
    "best_of_n": "share of test questions whose best-scored solution is right",
    "random_pick": "the same for a solution drawn at random",
    "majority_vote": "the same for the most frequent answer",
    "best_source": "always the source that is right most often, known in hindsight only",
    "pass_at_n": "share of questions with a right solution: the ceiling",
    "step_auc": "chance that a right step scores above a wrong one",
}


@dataclass(frozen=True)
class OutcomeSection:
    """What ``summary.json`` says."""

    tiles: list[Tile] = field(default_factory=list)
    table: Table | None = None
    meanings: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationSection:
    """What ``dreamprm evaluate`` says."""

    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def outcome_section(run: Run) -> OutcomeSection:
    """Empty where the run has no test set, or has not ended."""
    runs = {n: r for n, r in (run.summary.get("runs") or {}).items() if isinstance(r, dict) and r}
    if not runs:
        return OutcomeSection()
    columns = [key for key in COLUMNS if any(r.get(key) is not None for r in runs.values())]
    rows: list[list[Cell]] = [
        [LABELS.get(name, name), *(number(numbers.get(key)) for key in columns)]
        for name, numbers in runs.items()
    ]
    table = Table(
        "On the test set", ["weights", *(COLUMNS[key] for key in columns)], rows, key="summary"
    )
    return OutcomeSection(_tiles(runs), table, [(COLUMNS[k], MEANINGS[k]) for k in columns])


def _tiles(runs: dict[str, dict[str, float | None]]) -> list[Tile]:
    name, main = list(runs.items())[-1]
    plain = runs.get("uniform", {}) if name != "uniform" else {}
    tiles = []
    for key, title, against in (
        ("best_of_n", "best of N", ("random_pick", "majority_vote", "pass_at_n")),
        ("step_auc", "step AUC", ()),
    ):
        value = number(main.get(key))
        if not isinstance(value, Number):
            continue
        notes = [f"uniform weights {plain[key]:.3f}"] if plain.get(key) is not None else []
        notes += [f"{COLUMNS[k]} {main[k]:.3f}" for k in against if main.get(k) is not None]
        tiles.append(Tile(title, value, " · ".join(notes)))
    return tiles


def evaluation_section(evaluation: Evaluation) -> EvaluationSection:
    """Plots and tables of an evaluation file, its models beside each other."""
    plots, tables = [], []
    several = len(evaluation.models) > 1

    def called(model: str, what: str) -> str:
        return f"{model}: {what}" if several else what

    for number_, (model, found) in enumerate(evaluation.models.items()):
        if not found.selection:
            continue
        shown = list(found.selection.items())[:SELECTION_LINES]
        plots.append(
            plot_of(
                f"selection-{number_}",
                called(model, "selection accuracy"),
                [_interval_line(rule, curve) for rule, curve in shown],
                "candidates N",
                "accuracy",
                "Share of questions answered right when one of N solutions is picked; shaded: "
                "confidence intervals over questions.",
                doubling=True,
                table_key="selection",
            )
        )
        tables.append(_selection_table(called(model, "Selection accuracy"), found.selection))
    reliable = {m: e.reliability for m, e in evaluation.models.items() if e.reliability}
    if reliable:
        lines = [
            Line(model, [score for score, _, _ in bins], [right for _, right, _ in bins])
            for model, bins in reliable.items()
        ]
        plots.append(
            plot_of(
                "reliability",
                "Reliability",
                lines,
                "score of a step",
                "share of right steps",
                "A calibrated model lies on the diagonal: of its steps with a score of 0.7, "
                "70 % are right.",
                unit_square=True,
                table_key="reliability",
            )
        )
    names = list(dict.fromkeys(n for e in evaluation.models.values() for n in e.steps))
    if names:
        rows: list[list[Cell]] = [
            [name, *(_estimate(e.steps.get(name)) for e in evaluation.models.values())]
            for name in names
        ]
        tables.append(Table("Step level", ["metric", *evaluation.models], rows, key="steps"))
    for model, found in evaluation.models.items():
        if found.by_domain:
            columns = list(dict.fromkeys(c for row in found.by_domain.values() for c in row))
            rows = [
                [domain, *(number(numbers.get(c)) for c in columns)]
                for domain, numbers in found.by_domain.items()
            ]
            tables.append(Table(called(model, "By domain"), ["domain", *columns], rows[:16],
                                rows[16:], key="domains"))  # fmt: skip
    return EvaluationSection(plots, tables, [(k, str(v)) for k, v in evaluation.notes.items()])


def _interval_line(rule: str, curve: dict[int, Estimate]) -> Line:
    ns = sorted(curve)
    points = [curve[n] for n in ns]
    bounded = all(p.low is not None and p.high is not None for p in points)
    return Line(
        rule,
        [float(n) for n in ns],
        [p.value for p in points],
        [p.low for p in points if p.low is not None] if bounded else None,
        [p.high for p in points if p.high is not None] if bounded else None,
    )


def _selection_table(title: str, selection: dict[str, dict[int, Estimate]]) -> Table:
    ns = sorted({n for curve in selection.values() for n in curve})
    rows: list[list[Cell]] = [
        [rule, *(_estimate(curve.get(n)) for n in ns)] for rule, curve in selection.items()
    ]
    return Table(title, ["selected by", *(f"N = {n}" for n in ns)], rows, key="selection")


def _estimate(found: Estimate | None) -> Cell:
    if found is None:
        return "–"
    cell = number(found.value)
    if isinstance(cell, Number) and found.low is not None and found.high is not None:
        return Number(cell.value, f"{cell.text} ({found.low:.3f} to {found.high:.3f})")
    return cell
