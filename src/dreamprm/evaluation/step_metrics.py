"""How good step scores are against step labels: every metric as its paper defines it.

Every metric takes a weight per solution (how often it is in a bootstrap resample; 1 each for the
metric itself). A step is right where its label is above 0.5, and called right where its score is
above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dreamprm.evaluation.result import Bin, Threshold

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredSteps:
    """The labelled steps of some solutions, flat, in the order of their scores.

    Attributes:
        scores: in (0, 1), ascending, [n].
        labels: in [0, 1], [n].
        solution: the index of each step's solution, [n].
        solutions: how many there are.
        first_errors: for ProcessBench, (index of the solution, first wrong step or −1, scores of
            the steps up to there) of each whose steps are labelled that far.
    """

    scores: Array
    labels: Array
    solution: NDArray[np.int64]
    solutions: int
    first_errors: tuple[tuple[int, int, tuple[float, ...]], ...]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each step is."""
        return self.labels > 0.5


def scored_steps(
    scores: Sequence[Sequence[float]], labels: Sequence[Sequence[float | None] | None]
) -> ScoredSteps:
    """Puts scores and labels together.

    Args:
        scores: of every step of every solution, in (0, 1).
        labels: the same shape, None for a step or a solution without.

    Raises:
        FloatingPointError: a score is NaN.
    """
    flat: list[tuple[float, float, int]] = []
    errors = []
    for i, (row, found) in enumerate(zip(scores, labels, strict=True)):
        if any(math.isnan(score) for score in row):
            raise FloatingPointError(f"a step score of solution {i + 1} is NaN")
        steps = list(zip(row, found or [None] * len(row), strict=True))
        flat += [(score, label, i) for score, label in steps if label is not None]
        wrong = next((n for n, (_, p) in enumerate(steps) if p is not None and p <= 0.5), -1)
        judged = steps if wrong < 0 else steps[: wrong + 1]
        if judged and all(label is not None for _, label in judged):
            errors.append((i, wrong, tuple(score for score, _ in judged)))
    flat.sort()
    return ScoredSteps(
        np.array([s for s, _, _ in flat], dtype=float),
        np.array([p for _, p, _ in flat], dtype=float),
        np.array([i for _, _, i in flat], dtype=np.int64),
        len(scores),
        tuple(errors),
    )


def auc(
    scores: Sequence[float] | Array,
    right: Sequence[bool] | NDArray[np.bool_],
    weights: Array | None = None,
) -> float:
    """The area under the ROC curve: how often a right one scores above a wrong one, ties half.

    Args:
        scores: any numbers but NaN, [n].
        right: of which kind each is, [n].
        weights: [n]; None for 1 each. NaN is returned where only one kind has weight.
    """
    found, kind = np.asarray(scores, dtype=float), np.asarray(right, dtype=bool)
    if not len(found):
        return math.nan
    weight = np.ones(len(found)) if weights is None else weights
    order = np.argsort(found, kind="stable")
    found, kind, weight = found[order], kind[order], weight[order]
    starts = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
    positive = np.add.reduceat(weight * kind, starts)
    negative = np.add.reduceat(weight * ~kind, starts)
    below = np.cumsum(negative) - negative
    area = positive.sum() * negative.sum()
    return float((positive * (below + negative / 2)).sum() / area) if area else math.nan


def brier(steps: ScoredSteps, weights: Array) -> float:
    """The mean of (score − label)² over the steps (Brier 1950); NaN without weight."""
    weight = weights[steps.solution]
    total = weight.sum()
    return float((weight * (steps.scores - steps.labels) ** 2).sum() / total) if total else math.nan


def reliability(steps: ScoredSteps, bins: int) -> list[Bin]:
    """Bins of equal width over the scores: count, mean score and mean label of each.

    A score on an edge belongs to the bin above it, 1 to the last one.
    """
    place = _bin(steps.scores, bins)
    rows = []
    for b in range(bins):
        inside = place == b
        count = int(inside.sum())
        means = [float(of[inside].mean()) if count else None for of in (steps.scores, steps.labels)]
        rows.append(Bin(b / bins, (b + 1) / bins, count, *means))
    return rows


def calibration_error(steps: ScoredSteps, weights: Array, bins: int) -> float:
    """ECE (Guo et al. 2017): the mean over steps of their bin's |mean score − mean label|."""
    weight = weights[steps.solution]
    total = weight.sum()
    gaps = np.bincount(
        _bin(steps.scores, bins), weight * (steps.scores - steps.labels), minlength=bins
    )
    return float(np.abs(gaps).sum() / total) if total else math.nan


def _bin(scores: Array, bins: int) -> NDArray[np.int64]:
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, scores, side="right")


def visualprocessbench(
    steps: ScoredSteps, weights: Array, threshold: float
) -> tuple[float, float, float]:
    """VisualProcessBench's macro F1 (section 3.3 of arXiv 2503.10291).

    Steps without a label (the benchmark's neutral ones) do not count.

    Returns:
        F1 of the right steps, F1 of the wrong ones, and their mean; NaN where one class has no
        weight.
    """
    weight = weights[steps.solution]
    called, right = steps.scores > threshold, steps.right
    if not (weight[right].sum() and weight[~right].sum()):
        return math.nan, math.nan, math.nan
    ones = []
    for truth, call in ((right, called), (~right, ~called)):
        # 2 TP / (2 TP + FP + FN): the two F's denominators add up to all that is true or called.
        both = weight[truth & call].sum()
        ones.append(float(2 * both / (weight[truth].sum() + weight[call].sum())))
    return ones[0], ones[1], (ones[0] + ones[1]) / 2


@dataclass(frozen=True)
class LocatedErrors:
    """Where the first error of solutions was looked for, and whether it was found.

    Attributes:
        solution: their indices, [m].
        correct: whether a solution has no error, [m].
        hit: whether the prediction is right, [m].
    """

    solution: NDArray[np.int64]
    correct: NDArray[np.bool_]
    hit: NDArray[np.bool_]


def locate_errors(steps: ScoredSteps, threshold: float) -> LocatedErrors:
    """Predicts the first error of every solution: its first step not called right, or none."""
    found = [
        next((n for n, score in enumerate(scores) if score <= threshold), -1)
        for _, _, scores in steps.first_errors
    ]
    solution = np.array([i for i, _, _ in steps.first_errors], dtype=np.int64)
    error = np.array([n for _, n, _ in steps.first_errors], dtype=np.int64)
    return LocatedErrors(solution, error < 0, np.array(found, dtype=np.int64) == error)


def processbench(located: LocatedErrors, weights: Array) -> tuple[float, float, float]:
    """ProcessBench's F1 of locating the first error (section 3 of arXiv 2412.06559).

    Returns:
        of solutions with an error, the share where it is found at its step; of the others, the
        share where none is; and the harmonic mean of the two, 0 where both are 0 (the published
        code divides by 0). NaN where either kind has no weight.
    """
    weight = weights[located.solution]
    kinds = [~located.correct, located.correct]
    hits = np.array([weight[kind & located.hit].sum() for kind in kinds])
    return _harmonic(hits, np.array([weight[kind].sum() for kind in kinds]))


def _harmonic(hits: Array, totals: Array) -> tuple[float, float, float]:
    if not totals.all():
        return math.nan, math.nan, math.nan
    wrong, right = (float(value) for value in hits / totals)
    return wrong, right, 2 * wrong * right / (wrong + right) if wrong + right else 0.0


def best_threshold(steps: ScoredSteps) -> Threshold | None:
    """The threshold with the highest ProcessBench F1 on these solutions, the lowest of equals.

    How ProcessBench sets it for scores (on its GSM8K subset, for all subsets). None where there are
    no solutions with an error or none without.
    """
    # A solution counts where the threshold lies in [opens, closes): from its wrong step's score on,
    # below the lowest score of the steps before it.
    events: list[tuple[float, int, int]] = []
    totals, hits = np.zeros(2), np.zeros(2)
    for _, error, scores in steps.first_errors:
        kind = int(error < 0)
        totals[kind] += 1
        opens = scores[error] if error >= 0 else 0.0
        closes = min(scores[:error] if error >= 0 else scores, default=math.inf)
        if opens < closes:
            events += [(opens, 1, kind), (closes, -1, kind)]
    if not totals.all():
        return None
    best, chosen = -1.0, 0.0
    events.sort()
    for n, (threshold, sign, kind) in enumerate(events):
        hits[kind] += sign
        last = n + 1 == len(events) or events[n + 1][0] > threshold
        if last and math.isfinite(threshold) and (f1 := _harmonic(hits, totals)[2]) > best:
            best, chosen = f1, threshold
    return Threshold(chosen, max(best, 0.0))
