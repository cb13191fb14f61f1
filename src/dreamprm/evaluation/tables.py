"""The tables that ``dreamprm evaluate`` prints."""

from __future__ import annotations

from dreamprm.evaluation.result import Curve, Estimate, Evaluation, Selection, Steps
from dreamprm.scoring.aggregation import VOTE
from dreamprm.tables import table

BASELINES = {
    "random_pick": "random pick",
    "longest": "longest",
    "shortest": "shortest",
    "majority_vote": "majority vote",
    "majority_random_ties": "majority vote, ties at random",
    "best_source": "best source, in hindsight",
    "pass_at_n": "pass@N, the ceiling",
}
STEP_COLUMNS = {
    "auc": "AUC",
    "processbench_f1": "first error F1",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "brier": "Brier",
}


def evaluation_tables(result: Evaluation) -> str:
    """Every number that a reader wants first; the result holds the others."""
    parts = []
    first = result.settings.aggregations[0]
    for data in result.selection:
        parts += _selection(data, result.models)
        parts += _comparisons(data, (first, f"{VOTE}+{first}"))
    for labelled in result.steps:
        parts += _steps(labelled)
    return "\n\n".join(parts)


def _selection(data: Selection, models: list[str]) -> list[str]:
    few, many = data.candidates
    count = f"{few}" if few == many else f"{few} to {many}"
    title = (
        f"{data.name}: accuracy of the pick among N of {count} candidates, "
        f"{data.questions:,} questions"
    )
    rows = [
        [label + (f" ({found.source})" if found.source is not None else ""), *_accuracies(found)]
        for key, label in BASELINES.items()
        if (found := data.baselines.get(key)) is not None
    ]
    for model in models:
        prefix = f"{model}: " if len(models) > 1 else ""
        for rule, found in data.models[model].rules.items():
            rows.append([prefix + rule, *_accuracies(found)])
    tables = [f"{title}:", table(["pick", *(f"N = {n}" for n in data.n)], rows)]
    drawn = [n for n, exact in zip(data.n, data.exact_votes, strict=True) if not exact]
    if drawn:
        numbers = ", ".join(map(str, drawn))
        tables.append(
            f"Votes at N = {numbers} are over subsets drawn at random; all else is exact."
        )
    return tables


def _accuracies(found: Curve) -> list[str]:
    """One cell per N, the last with its interval."""
    *cells, _ = (f"{value:.3f}" for value in found.accuracy)
    return [*cells, _cell(found.estimates[-1])]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"


def _comparisons(data: Selection, rules: tuple[str, ...]) -> list[str]:
    rows = [
        [
            pair.first,
            pair.rule,
            BASELINES.get(pair.second, pair.second),
            f"{pair.difference:+.3f}{_interval(pair.low, pair.high)}",
            "–" if pair.p_bootstrap is None else f"{pair.p_bootstrap:.3f}",
            f"{pair.only_first} : {pair.only_second}",
            f"{pair.p_mcnemar:.3f}",
        ]
        for pair in data.comparisons
        if pair.rule in rules
    ]
    if not rows:
        return []
    header = ["model", "by", "against", "difference", "p, bootstrap", "right alone", "p, McNemar"]
    return [f"{data.name}, of all candidates, question by question:", table(header, rows, 3)]


def _steps(data: Steps) -> list[str]:
    rows = []
    for model, found in data.models.items():
        domains = found.domains if len(found.domains) > 1 else {}
        for name, numbers in [*domains.items(), ("all", found.total)]:
            rows.append(
                [
                    model,
                    name,
                    f"{numbers.solutions:,}",
                    f"{numbers.steps:,}",
                    f"{numbers.share_right:.3f}",
                    *(_cell(getattr(numbers, key)) for key in STEP_COLUMNS),
                ]
            )
        if domains:
            means = [found.mean.get(key) for key in STEP_COLUMNS]
            cells = ["–" if value is None else f"{value:.3f}" for value in means]
            rows.append([model, "mean of domains", "", "", "", *cells])
    header = ["model", "domain", "solutions", "steps", "right", *STEP_COLUMNS.values()]
    thresholds = {found.threshold for found in data.models.values()}
    shown = ", ".join(f"{threshold:.3g}" for threshold in sorted(thresholds))
    title = f"{data.name}: step scores against step labels (right above {shown}):"
    return [title, table(header, rows, 2)]


def _cell(found: Estimate) -> str:
    if found.value is None:
        return "–"
    return f"{found.value:.3f}{_interval(found.low, found.high)}"
