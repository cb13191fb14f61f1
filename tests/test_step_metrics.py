"""Step metrics and significance against scikit-learn, scipy, and the published definitions."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.evaluation.data_sets import DataSet
from dreamprm.evaluation.evaluate import Settings
from dreamprm.evaluation.evaluate_selection import evaluate_picks
from dreamprm.evaluation.evaluate_steps import evaluate_steps
from dreamprm.evaluation.result import Estimate
from dreamprm.evaluation.significance import bootstrap_means, interval, mcnemar, paired_difference
from dreamprm.evaluation.step_metrics import (
    auc,
    best_threshold,
    brier,
    calibration_error,
    locate_errors,
    processbench,
    reliability,
    scored_steps,
    visualprocessbench,
)

Labels = list[float | None]


def some_steps(seed: int, soft: bool = False) -> tuple[list[list[float]], list[Labels | None]]:
    """Scores with ties, labels with gaps, solutions without labels."""
    rng = random.Random(seed)
    scores, labels = [], []
    for i in range(40):
        count = rng.randint(0, 6)
        scores.append([rng.randint(0, 20) / 20 for _ in range(count)])
        choices = [0.0, 0.25, 0.5, 0.75, 1.0, None] if soft else [0.0, 1.0, 1.0, 1.0, None]
        labels.append(None if i % 9 == 0 else [rng.choice(choices) for _ in range(count)])
    return scores, labels


def flat(
    scores: list[list[float]], labels: list[Labels | None], weights: list[float] | None = None
) -> tuple[list[float], list[float], list[float]]:
    found = [
        (score, label, weights[i] if weights else 1.0)
        for i, (row, ps) in enumerate(zip(scores, labels, strict=True))
        for score, label in zip(row, ps or [None] * len(row), strict=True)
        if label is not None
    ]
    a, b, c = zip(*found, strict=True)
    return list(a), list(b), list(c)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_those_of_scikit_learn(seed: int, weighted: bool) -> None:
    scores, labels = some_steps(seed)
    rng = random.Random(seed)
    weights = [float(rng.randint(0, 3)) if weighted else 1.0 for _ in scores]
    steps = scored_steps(scores, labels)
    a, b, c = flat(scores, labels, weights)
    w = np.array(weights)
    right = [p > 0.5 for p in b]
    expected = roc_auc_score(right, a, sample_weight=c)
    assert auc(steps.scores, steps.right, w[steps.solution]) == pytest.approx(expected, abs=1e-12)
    expected = brier_score_loss(right, a, sample_weight=c)
    assert brier(steps, w) == pytest.approx(expected, abs=1e-12)
    called = [score > 0.5 for score in a]
    f1s = [f1_score(right, called, pos_label=k, sample_weight=c) for k in (True, False)]
    expected = (*f1s, f1_score(right, called, average="macro", sample_weight=c))
    assert visualprocessbench(steps, w, 0.5) == pytest.approx(expected, abs=1e-12)


def test_the_area_of_a_thousand_inputs_is_that_of_scikit_learn() -> None:
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(2, 200))
        scores = rng.normal(size=count).round(int(rng.integers(0, 4)))  # from many ties to few
        right = rng.random(count) < rng.uniform(0.1, 0.9)
        right[:2] = (True, False)
        assert abs(auc(scores, right) - roc_auc_score(right, scores)) < 1e-12
        weights = rng.random(count)
        expected = roc_auc_score(right, scores, sample_weight=weights)
        assert abs(auc(scores, right, weights) - expected) < 1e-12


def test_the_area_without_weights_is_rounded_once() -> None:
    rng = random.Random(0)
    for _ in range(100):
        count = rng.randint(2, 40)
        scores = [rng.choice([-math.inf, *range(9), math.inf]) for _ in range(count)]
        right = [i == 0 or (i > 1 and rng.random() < 0.5) for i in range(count)]
        pairs = [
            Fraction(1, 2) if a == b else Fraction(a > b)
            for a, p in zip(scores, right, strict=True)
            for b, q in zip(scores, right, strict=True)
            if p and not q
        ]
        assert auc(scores, right) == float(sum(pairs) / len(pairs))


@pytest.mark.parametrize("bins", [1, 7, 10])
@pytest.mark.parametrize("soft", [False, True])
def test_calibration_equals_a_loop_over_bins(bins: int, soft: bool) -> None:
    scores, labels = some_steps(5, soft)
    steps = scored_steps(scores, labels)
    a, b, _ = flat(scores, labels)
    inside: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for score, label in zip(a, b, strict=True):
        last = max(k for k in range(bins) if score >= k / bins)
        inside[last].append((score, label))
    rows = reliability(steps, bins)
    ece = 0.0
    for row, found in zip(rows, inside, strict=True):
        assert row.count == len(found)
        if found:
            confidence, share = np.mean(found, axis=0)
            assert (row.score, row.label) == pytest.approx((confidence, share), abs=1e-12)
            ece += len(found) / len(a) * abs(confidence - share)
    found = calibration_error(steps, np.ones(steps.solutions), bins)
    assert found == pytest.approx(ece, abs=1e-12)
    expected = np.mean([(s - p) ** 2 for s, p in zip(a, b, strict=True)])
    assert brier(steps, np.ones(steps.solutions)) == pytest.approx(expected, abs=1e-12)


def published_processbench(
    scores: list[list[float]], labels: list[int], threshold: float
) -> tuple[float, float, float]:
    """As the benchmark's evaluation computes it, from the index of the first wrong step or −1."""
    match = []
    for row in scores:
        wrong = [i for i, score in enumerate(row) if not score > threshold]
        match.append(wrong[0] if wrong else -1)
    error = [m == label for m, label in zip(match, labels, strict=True) if label != -1]
    correct = [m == label for m, label in zip(match, labels, strict=True) if label == -1]
    a, b = np.mean(error), np.mean(correct)
    return a, b, 2 * a * b / (a + b) if a + b else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_first_error_as_published(seed: int) -> None:
    rng = random.Random(seed)
    scores = [[rng.randint(1, 12) / 13 for _ in range(rng.randint(1, 5))] for _ in range(60)]
    labels = [rng.randint(-1, len(row) - 1) for row in scores]
    steps = scored_steps(
        scores,
        [
            [1.0] * len(row)
            if label == -1
            else [1.0] * label + [0.0] + [None] * (len(row) - label - 1)
            for row, label in zip(scores, labels, strict=True)
        ],
    )
    once = np.ones(60)
    best = 0.0
    for threshold in (k / 26 for k in range(27)):
        found = processbench(locate_errors(steps, threshold), once)
        expected = published_processbench(scores, labels, threshold)
        assert found == pytest.approx(expected, abs=1e-12)
        best = max(best, expected[2])
    chosen = best_threshold(steps)
    assert chosen is not None
    assert processbench(locate_errors(steps, chosen.threshold), once)[2] == chosen.f1
    assert chosen.f1 == pytest.approx(best, abs=1e-12)


def test_solutions_that_say_nothing_of_the_first_error_do_not_count() -> None:
    labels: list[Labels | None] = [
        [1.0, None, 0.0],  # an earlier error is possible
        [1.0, None],  # an error is possible
        [],
        None,
        [1.0, 0.0, None],
        [1.0, 1.0, 0.9],
    ]
    steps = scored_steps([[0.9] * len(row or []) for row in labels], labels)
    assert [(i, error) for i, error, _ in steps.first_errors] == [(4, 1), (5, -1)]


def test_one_class_only_has_no_ranking() -> None:
    steps = scored_steps([[0.2, 0.8]], [[1.0, 1.0]])
    once = np.ones(1)
    assert math.isnan(auc(steps.scores, steps.right))
    assert math.isnan(auc([], []))
    assert math.isnan(auc([0.2, 0.8], [True, False], np.array([0.0, 1.0])))
    assert math.isnan(visualprocessbench(steps, once, 0.5)[2])
    assert math.isnan(processbench(locate_errors(steps, 0.5), once)[2])
    assert best_threshold(steps) is None
    with pytest.raises(FloatingPointError, match="step score of solution 1 is NaN"):
        scored_steps([[math.nan]], [[1.0]])


def rows_of(labels: list[Labels | None], domain: str) -> list[Trajectory]:
    return [
        Trajectory(
            f"{domain}{i}",
            domain,
            "?",
            ("s",) * len(row or []),
            step_labels=None if row is None else tuple(row),
        )
        for i, row in enumerate(labels)
    ]


def test_by_domain_and_in_total() -> None:
    parts = [some_steps(1), some_steps(2)]
    rows = [row for name, (_, ls) in zip("ab", parts, strict=True) for row in rows_of(ls, name)]
    scores = [row for found, _ in parts for row in found]
    found = evaluate_steps(rows, scores, Settings(bootstrap=20).judging)
    aucs = []
    for name, (s, ls) in zip("ab", parts, strict=True):
        a, b, _ = flat(s, ls)
        aucs.append(roc_auc_score([p > 0.5 for p in b], a))
        numbers = found.domains[name]
        assert numbers.auc.value == pytest.approx(aucs[-1], abs=1e-12)
        assert numbers.auc.low < aucs[-1] < numbers.auc.high
        assert numbers.steps == len(a) == sum(row.count for row in numbers.reliability)
    assert found.mean["auc"] == pytest.approx(sum(aucs) / 2, abs=1e-12)
    a, b, _ = flat(scores, [ls for _, ps in parts for ls in ps])
    total = roc_auc_score([p > 0.5 for p in b], a)
    assert found.total.auc.value == pytest.approx(total, abs=1e-12)
    # The threshold of one domain, for all.
    tuned = evaluate_steps(rows, scores, Settings(bootstrap=0, threshold_domain="a").judging)
    best = tuned.domains["a"].processbench_best
    assert tuned.threshold == best.threshold
    assert tuned.domains["a"].processbench_f1 == Estimate(best.f1, None, None)
    with pytest.raises(UserError, match="unknown domain 'c'"):
        evaluate_steps(rows, scores, Settings(threshold_domain="c").judging)


def test_mcnemar_is_the_binomial_test() -> None:
    for b, c in itertools.product(range(0, 40, 3), repeat=2):
        expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
        assert mcnemar(b, c) == pytest.approx(expected, abs=1e-12)


def binomial_tail(fewer: int, n: int) -> Fraction:
    """2 · P(X ≤ fewer) of n fair coins, at most 1, in whole numbers."""
    term = total = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        total += term
    return min(Fraction(1), Fraction(2 * total, 2**n))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 51, 400, 2_000, 20_000])
def test_mcnemar_is_exact_at_any_size(n: int) -> None:
    for deviations in (0, 0.5, 1, 2, 3, 5, 20):
        fewer = max(0, round((n - deviations * math.sqrt(n)) / 2))
        expected = binomial_tail(fewer, n)
        for pair in ((fewer, n - fewer), (n - fewer, fewer)):
            # Continued fractions of the incomplete beta function, some thousand roundings at most.
            assert abs(Fraction(mcnemar(*pair)) / expected - 1) < 1e-12


def test_mcnemar_of_many_pairs_is_the_normal_tail() -> None:
    n = 10**9  # where a sum over the tail would not end
    for deviations in (0.5, 2.0, 4.0):
        fewer = round((n - deviations * math.sqrt(n)) / 2)
        # Corrected for whole numbers, a symmetric binomial is normal to z⁴ / n.
        expected = math.erfc((n / 2 - fewer - 0.5) / math.sqrt(n / 2))
        assert mcnemar(fewer, n - fewer) == pytest.approx(expected, rel=1e-7)


def test_one_question_is_no_evidence() -> None:
    found = paired_difference([True], [False], 100, seed=0)
    assert (found.difference, found.low, found.high) == (1.0, None, None)
    assert (found.p_bootstrap, found.p_mcnemar) == (None, 1.0)
    assert interval(bootstrap_means(np.ones((1, 1)), 100, seed=0)[:, 0]) == (None, None)
    numbers = evaluate_steps(
        [Trajectory("a", "a", "q", ("x", "y"), step_labels=(1.0, 0.0))],
        [[0.9, 0.2]],
        Settings().judging,
    ).total
    assert numbers.auc == Estimate(1.0, None, None)


def test_questions_that_all_say_the_same_leave_the_bootstrap_nothing_to_say() -> None:
    for first in (True, False):
        found = paired_difference([first] * 3, [not first] * 3, 100, seed=0)
        assert (found.p_bootstrap, found.p_mcnemar) == (None, 0.25)
    # No difference anywhere is what chance gives too.
    assert paired_difference([True] * 3, [True] * 3, 100, seed=0).p_bootstrap == 1
    assert paired_difference([True, True, False], [False] * 3, 100, seed=0).p_bootstrap is not None


def test_comparisons_of_nothing_or_of_other_questions_are_refused() -> None:
    with pytest.raises(UserError, match="got 0 and 0 picks"):
        paired_difference([], [], 100, seed=0)
    # numpy would hold the one against each of the three.
    with pytest.raises(UserError, match="got 1 and 3 picks"):
        paired_difference([True], [True, False, True], 100, seed=0)
    with pytest.raises(UserError, match="no questions"):
        evaluate_picks(DataSet("none", None, [], []), {}, Settings().judging)


def test_the_bootstrap_is_over_questions_and_paired() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((300, 2)) < (0.3, 0.7)).astype(float)
    samples = bootstrap_means(values, 2000, seed=1)
    assert samples.shape == (2000, 2)
    error = np.sqrt(values.var(axis=0) / 300)
    # The standard deviation of 2,000 resampled means is known to within 5 % (3 standard errors).
    assert samples.std(axis=0) == pytest.approx(error, rel=0.05)
    low, high = interval(samples[:, 0])
    assert (low, high) == pytest.approx(
        (values[:, 0].mean() - 1.96 * error[0], values[:, 0].mean() + 1.96 * error[0]), abs=0.01
    )
    first, second = (list(map(bool, column)) for column in values.T)
    found = paired_difference(first, second, 500, seed=0)
    assert found.difference == pytest.approx(values[:, 0].mean() - values[:, 1].mean(), abs=1e-12)
    assert found.only_first == sum(a and not b for a, b in zip(first, second, strict=True))
    assert found.p_bootstrap == pytest.approx(2 / 501)
    same = paired_difference(first, first, 500, seed=0)
    assert (same.difference, same.low, same.high, same.p_bootstrap, same.p_mcnemar) == (
        0,
        0,
        0,
        1,
        1,
    )
    assert paired_difference(first, second, 0, seed=0).low is None
