"""The losses of every problem: which level it is of, and what its loss is held against."""

from __future__ import annotations

from dreamprm.reporting.content import Plot, plot_of
from dreamprm.reporting.plots import Line
from dreamprm.reporting.run import Run, series
from dreamprm.words import plural

STEP = "lower-level step"


def losses(run: Run) -> list[Plot]:
    """A plot of the loss of each problem."""
    logged = run.names()
    found = [n.removesuffix("/loss") for n in run.names("/loss") if n != "validation/loss"]
    weighted = {problem for problem in found if f"{problem}/unweighted_loss" in logged}
    uppers = _uppers(found, weighted)
    plots: list[Plot] = []
    for problem in found:
        if problem in uppers:
            title, caption, lines = _upper(run, problem)
        else:
            reweighted = bool(uppers) or (problem in weighted and bool(run.weights))
            title, caption, lines = _lower(run, problem, reweighted)
            if len(found) > 1 and not uppers:
                title, caption = f"Loss of {problem}", f"What {problem} is trained on."
        name = f"loss-{len(plots)}"
        plots.append(
            plot_of(name, title, lines, STEP, "loss", caption, table_key=f"{problem}/loss")
        )
    return plots


def _uppers(problems: list[str], weighted: set[str]) -> set[str]:
    """The problems that give weights: by their name, or as others alone log a weighted loss."""
    return {p for p in problems if p == "weighting" or (weighted and p not in weighted)}


def _upper(run: Run, problem: str) -> tuple[str, str, list[Line]]:
    name = run.summary.get("meta_loss") or run.config.get("meta_loss")
    which = f" ({name})" if name else ""
    caption = (
        f"What the weights are learned from: the meta loss{which} on the {run.words.meta}."
        if run.weights
        else f"What the upper level is trained on: its loss{which} on the {run.words.meta}."
    )
    line = Line("meta loss", *series(run.metrics, f"{problem}/loss"))
    return f"Upper level: {problem}", caption, [line]


def _lower(run: Run, problem: str, reweighted: bool) -> tuple[str, str, list[Line]]:
    name, plain = f"{problem}/loss", f"{problem}/unweighted_loss"
    grouped = bool(run.weights) and run.rows is None
    each = run.words.group if grouped else run.words.sample
    # Where labels are learned and no weights, the two are one.
    reweighted = reweighted and series(run.metrics, name) != series(run.metrics, plain)
    lines = [Line("weighted loss" if reweighted else "loss", *series(run.metrics, name))]
    if reweighted and plain in run.names():
        lines.append(Line(f"every {each} counting 1", *series(run.metrics, plain)))
    if any(name in row for row in run.baseline):
        lines.append(Line(f"run with {run.words.plain}", *series(run.baseline, name)))
    caption = "What the model is trained on."
    if reweighted:
        caption += (
            f" The weighted loss falls where weight moves to {plural(each)} that are easy to fit; "
            "only against the meta loss is that progress."
        )
    return f"Lower level: {problem}", caption, lines
