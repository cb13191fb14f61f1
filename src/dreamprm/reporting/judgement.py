"""The section on an evaluation: selection accuracy against N, step metrics, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dreamprm.evaluation.result import Curve, Estimate, Evaluation, Selection, StepNumbers, Steps
from dreamprm.evaluation.significance import Comparison
from dreamprm.reporting.content import Cell, Number, Plot, Table, compact, number, plot_of
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
STEP_METRICS = {
    "auc": "AUC",
    "processbench_f1": "first error located, F1 (ProcessBench)",
    "processbench_error_accuracy": "first error located, of solutions with one",
    "processbench_correct_accuracy": "no error found, of solutions without one",
    "macro_f1": "macro F1 (VisualProcessBench)",
    "f1_right": "F1 of right steps",
    "f1_wrong": "F1 of wrong steps",
    "ece": "expected calibration error",
    "brier": "Brier score",
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
    judged = evaluation.settings
    intervals = f"{judged.confidence:.0%} bootstrap intervals" if judged.bootstrap else ""
    several = len(evaluation.models) > 1
    for i, picks in enumerate(evaluation.selection):
        if i < SETS:
            plots.append(_selection_plot(f"selection-{i}", picks, several, intervals))
        tables.append(_selection_table(picks, several, intervals))
        pairs = [pair for pair in picks.comparisons if pair.rule in judged.aggregations[:1]]
        if pairs:
            tables.append(_comparisons(picks.name, pairs, several))
    for i, steps in enumerate(evaluation.steps):
        if i < SETS:
            plots.append(_reliability(f"reliability-{i}", steps))
        tables.append(_step_table(steps, intervals))
        tables += [
            _domains(f"{steps.name}, {model}" if several else steps.name, found.domains)
            for model, found in steps.models.items()
            if len(found.domains) > 1
        ]
    notes = [
        "Accuracy at N is the share of questions answered right when a rule picks among N of a "
        "question's solutions, in expectation over which N."
    ]
    return EvaluationSection(plots, tables, notes if evaluation.selection else [])


def _rule(name: str) -> str:
    first, plus, rest = name.partition("+")
    if first == "vote" and plus:
        return f"vote by {RULES.get(rest, rest).removeprefix('best by ')}"
    return RULES.get(name, name)


def _selection_plot(key: str, picks: Selection, several: bool, intervals: str) -> Plot:
    lines = []
    first = next((rule for found in picks.models.values() for rule in found.rules), "")
    for model, found in picks.models.items():
        votes = [rule for rule in found.rules if rule.startswith("vote")]
        shown = list(found.rules)[:1] if several else [*list(found.rules)[:1], *votes[:1]]
        labels = {rule: model if several else _rule(rule) for rule in shown}
        lines += [_interval_line(labels[rule], picks.n, found.rules[rule]) for rule in shown]
    lines += [
        _interval_line(_rule(name), picks.n, picks.baselines[name], shaded=False)
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


def _interval_line(label: str, ns: list[int], curve: Curve, shaded: bool = True) -> Line:
    low = [bound for bound in curve.low if bound is not None]
    high = [bound for bound in curve.high if bound is not None]
    bounded = shaded and len(low) == len(high) == len(ns)
    return Line(
        label,
        [float(n) for n in ns],
        curve.accuracy,
        low if bounded else None,
        high if bounded else None,
        dashed=not shaded,
    )


def _selection_table(picks: Selection, several: bool, intervals: str) -> Table:
    """The first rule, the vote by it and what needs no model; the other rules on demand."""
    first: dict[str, Curve] = {}
    others: dict[str, Curve] = {}
    for model, found in picks.models.items():
        main = next(iter(found.rules), "")
        for rule, curve in found.rules.items():
            rows = first if rule in (main, f"vote+{main}") else others
            rows[f"{model}: {_rule(rule)}" if several else _rule(rule)] = curve
    first |= {_rule(name): curve for name, curve in picks.baselines.items()}

    def cells(curves: dict[str, Curve]) -> list[list[Cell]]:
        return [[rule, *map(_estimate, curve.estimates)] for rule, curve in curves.items()]

    with_ = f", with {intervals}" if intervals else ""
    return Table(
        f"Selection accuracy on {picks.name}: {picks.questions:,} questions{with_}",
        ["picked", *(f"N = {n}" for n in picks.n)],
        cells(first),
        cells(others),
        key="selection",
    )


def _comparisons(name: str, pairs: Sequence[Comparison], several: bool) -> Table:
    rows: list[list[Cell]] = [
        [
            f"{pair.first if several else 'this model'} against {_rule(pair.second)}",
            _estimate(Estimate(pair.difference, pair.low, pair.high), "+.3f"),
            compact(pair.p_mcnemar),
        ]
        for pair in pairs
    ]
    return Table(
        f"Differences of picks on {name}, paired by question, all candidates",
        ["pair", "difference", "McNemar's p"],
        rows[:COMPARED],
        rows[COMPARED:],
        key="comparisons",
    )


def _reliability(key: str, steps: Steps) -> Plot:
    lines = []
    for model, found in steps.models.items():
        bins = [(b.score, b.label) for b in found.total.reliability]
        points = [(x, y) for x, y in bins if x is not None and y is not None]
        lines.append(Line(model, [x for x, _ in points], [y for _, y in points]))
    return plot_of(
        key,
        f"Reliability: {steps.name}",
        lines,
        "score of a step",
        "mean label",
        "A calibrated model lies on the diagonal: its steps with a score of 0.7 have a mean label "
        "of 0.7.",
        unit_square=True,
        table_key="reliability",
    )


def _step_table(steps: Steps, intervals: str) -> Table:
    totals = [_known(found.total) for found in steps.models.values()]
    rows: list[list[Cell]] = [
        [metric, *(_estimate(total.get(metric)) for total in totals)]
        for metric in dict.fromkeys(metric for total in totals for metric in total)
    ]
    with_ = f", with {intervals} over solutions" if intervals else ""
    return Table(f"Step level on {steps.name}{with_}", ["metric", *steps.models], rows, key="steps")


def _domains(name: str, found: dict[str, StepNumbers]) -> Table:
    domains = {domain: _known(numbers) for domain, numbers in found.items()}
    metrics = list(dict.fromkeys(metric for known in domains.values() for metric in known))
    rows: list[list[Cell]] = [
        [domain, *(_estimate(known.get(metric)) for metric in metrics)]
        for domain, known in domains.items()
    ]
    return Table(f"Step level by domain: {name}", ["domain", *metrics], rows[:DOMAINS],
                 rows[DOMAINS:], key="domains")  # fmt: skip


def _known(numbers: StepNumbers) -> dict[str, Estimate]:
    """The metrics that the data allow, by what they are called."""
    found = {label: getattr(numbers, name) for name, label in STEP_METRICS.items()}
    return {label: estimate for label, estimate in found.items() if estimate.value is not None}


def _estimate(found: Estimate | None, form: str = ".3f") -> Cell:
    if found is None or found.value is None:
        return "–"
    cell = number(found.value, form)
    if isinstance(cell, Number) and found.low is not None and found.high is not None:
        low, high = (format(bound, form).replace("-", "−") for bound in (found.low, found.high))
        return Number(cell.value, f"{cell.text} ({low}\xa0to\xa0{high})")
    return cell
