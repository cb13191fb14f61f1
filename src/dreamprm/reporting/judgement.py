"""The section on an evaluation: selection accuracy against N, step metrics, reliability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dreamprm.reporting.content import Cell, Number, Plot, Table, compact, number, plot_of
from dreamprm.reporting.evaluation import Curve, Estimate, Evaluation, Picks, StepNumbers
from dreamprm.reporting.plots import Line

SETS = 4  # data sets with plots; the others have their tables
DOMAINS = 16  # that a table shows at once
COMPARED = 20
RULES = {
    "mean_logit": "best by mean logit",
    "mean": "best by mean score",
    "min": "best by lowest step",
    "product": "best by product",
    "last": "best by last step",
    "max": "best by highest step",
    "random_pick": "random pick",
    "pass_at_n": "pass@N, the ceiling",
    "majority_vote": "majority vote",
    "best_source": "best single source",
    "longest": "longest",
    "shortest": "shortest",
}
DRAWN_BASELINES = ("majority_vote", "best_source", "random_pick", "pass_at_n")


@dataclass(frozen=True)
class EvaluationSection:
    """What ``dreamprm evaluate`` says."""

    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def evaluation_section(evaluation: Evaluation) -> EvaluationSection:
    """Plots and tables of an evaluation file, its models beside each other."""
    plots, tables = [], []
    intervals = f"{evaluation.confidence:.0%} bootstrap intervals" if evaluation.confidence else ""
    several = len(evaluation.models) > 1
    for i, picks in enumerate(evaluation.picks):
        if i < SETS:
            plots.append(_selection_plot(f"selection-{i}", picks, several, intervals))
        tables.append(_selection_table(picks, several, intervals))
        if picks.comparisons:
            tables.append(_comparisons(picks, several))
    for i, (name, models) in enumerate(evaluation.steps):
        if i < SETS:
            plots.append(_reliability(f"reliability-{i}", name, models))
        tables.append(_step_table(name, models, intervals))
        tables += [
            _domains(f"{name}, {model}" if several else name, numbers)
            for model, numbers in models.items()
            if len(numbers.domains) > 1
        ]
    notes = [
        "Accuracy at N is the share of questions answered right when a rule picks among N of a "
        "question's solutions, in expectation over which N."
    ]
    return EvaluationSection(plots, tables, notes if evaluation.picks else [])


def _rule(name: str) -> str:
    first, plus, rest = name.partition("+")
    if first == "vote" and plus:
        return f"vote by {RULES.get(rest, rest).removeprefix('best by ')}"
    return RULES.get(name, name)


def _selection_plot(key: str, picks: Picks, several: bool, intervals: str) -> Plot:
    lines = []
    first = next((rule for rules in picks.models.values() for rule in rules), "")
    for model, rules in picks.models.items():
        votes = [rule for rule in rules if rule.startswith("vote")]
        shown = list(rules)[:1] if several else [*list(rules)[:1], *votes[:1]]
        lines += [_interval_line(model if several else _rule(r), rules[r]) for r in shown]
    lines += [
        _interval_line(_rule(name), picks.baselines[name], shaded=False)
        for name in DRAWN_BASELINES
        if name in picks.baselines
    ]
    return plot_of(
        key,
        f"Selection accuracy: {picks.name}",
        lines[:10],
        "candidates N",
        "accuracy",
        f"{picks.questions:,} questions."
        + (f" Every model: {_rule(first)}." if several else "")
        + (f" Shaded: {intervals} over questions." if intervals else ""),
        doubling=True,
        table_key="selection-curve",
    )


def _interval_line(label: str, curve: Curve, shaded: bool = True) -> Line:
    ns = sorted(curve)
    points = [curve[n] for n in ns]
    low = [p.low for p in points if p.low is not None]
    high = [p.high for p in points if p.high is not None]
    bounded = shaded and len(low) == len(high) == len(ns)
    return Line(
        label,
        [float(n) for n in ns],
        [p.value for p in points],
        low if bounded else None,
        high if bounded else None,
        dashed=not shaded,
    )


def _selection_table(picks: Picks, several: bool, intervals: str) -> Table:
    """The first rule, the vote by it and what needs no model; the other rules on demand."""
    first: dict[str, Curve] = {}
    others: dict[str, Curve] = {}
    for model, rules in picks.models.items():
        main = next(iter(rules), "")
        for rule, curve in rules.items():
            rows = first if rule in (main, f"vote+{main}") else others
            rows[f"{model}: {_rule(rule)}" if several else _rule(rule)] = curve
    first |= {_rule(name): curve for name, curve in picks.baselines.items()}
    ns = sorted({n for curve in first.values() for n in curve})

    def cells(curves: dict[str, Curve]) -> list[list[Cell]]:
        return [[rule, *(_estimate(curve.get(n)) for n in ns)] for rule, curve in curves.items()]

    with_ = f", with {intervals}" if intervals else ""
    return Table(
        f"Selection accuracy on {picks.name}: {picks.questions:,} questions{with_}",
        ["picked", *(f"N = {n}" for n in ns)],
        cells(first),
        cells(others),
        key="selection",
    )


def _comparisons(picks: Picks, several: bool) -> Table:
    rows: list[list[Cell]] = [
        [
            f"{first if several else 'this model'} against {_rule(second)}",
            _estimate(difference, "+.3f"),
            compact(p),
        ]
        for first, second, difference, p in picks.comparisons
    ]
    return Table(
        f"Differences of picks on {picks.name}, paired by question, all candidates",
        ["pair", "difference", "McNemar's p"],
        rows[:COMPARED],
        rows[COMPARED:],
        key="comparisons",
    )


def _reliability(key: str, name: str, models: Mapping[str, StepNumbers]) -> Plot:
    lines = [
        Line(model, [score for score, _, _ in n.reliability], [y for _, y, _ in n.reliability])
        for model, n in models.items()
    ]
    return plot_of(
        key,
        f"Reliability: {name}",
        lines,
        "score of a step",
        "mean label",
        "A calibrated model lies on the diagonal: its steps with a score of 0.7 have a mean label "
        "of 0.7.",
        unit_square=True,
        table_key="reliability",
    )


def _step_table(name: str, models: Mapping[str, StepNumbers], intervals: str) -> Table:
    metrics = list(dict.fromkeys(m for numbers in models.values() for m in numbers.total))
    rows: list[list[Cell]] = [
        [metric, *(_estimate(numbers.total.get(metric)) for numbers in models.values())]
        for metric in metrics
    ]
    with_ = f", with {intervals} over solutions" if intervals else ""
    return Table(f"Step level on {name}{with_}", ["metric", *models], rows, key="steps")


def _domains(name: str, numbers: StepNumbers) -> Table:
    metrics = list(dict.fromkeys(m for found in numbers.domains.values() for m in found))
    rows: list[list[Cell]] = [
        [domain, *(_estimate(found.get(metric)) for metric in metrics)]
        for domain, found in numbers.domains.items()
    ]
    return Table(f"Step level by domain: {name}", ["domain", *metrics], rows[:DOMAINS],
                 rows[DOMAINS:], key="domains")  # fmt: skip


def _estimate(found: Estimate | None, form: str = ".3f") -> Cell:
    if found is None:
        return "–"
    cell = number(found.value, form)
    if isinstance(cell, Number) and found.low is not None and found.high is not None:
        low, high = (format(bound, form).replace("-", "−") for bound in (found.low, found.high))
        return Number(cell.value, f"{cell.text} ({low}\xa0to\xa0{high})")
    return cell
