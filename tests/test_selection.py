"""Aggregations, the choice of a candidate, and best-of-N in expectation, against brute force."""

from __future__ import annotations

import itertools
import math
import random
from decimal import Decimal, getcontext

import numpy as np
import pytest

from dreamprm.data.trajectory import Candidate
from dreamprm.errors import UserError
from dreamprm.evaluation import best_of_n
from dreamprm.evaluation.accuracy import majority_chance
from dreamprm.evaluation.best_of_n import (
    expected_best,
    expected_majority,
    expected_vote,
    pass_at,
    sizes,
)
from dreamprm.scoring.aggregation import AGGREGATIONS, aggregate, probability, split_rule
from dreamprm.scoring.answers import normalised_answer
from dreamprm.scoring.selection import answer_groups, choose, first_best


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


LOGITS = [0.3, -1.2, 2.5, -0.4]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean_logit", sigma(1.2 / 4)),
        ("mean", sum(map(sigma, LOGITS)) / 4),
        ("min", sigma(-1.2)),
        ("product", math.prod(map(sigma, LOGITS))),
        ("last", sigma(-0.4)),
        ("max", sigma(2.5)),
    ],
)
def test_aggregated_scores_by_hand(name: str, expected: float) -> None:
    assert probability(aggregate(LOGITS, name)) == pytest.approx(expected, rel=1e-12)
    assert aggregate([], name) == -math.inf
    assert probability(aggregate([], name)) == 0.0
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match="step 2"):
            aggregate([0.0, bad], name)


@pytest.mark.parametrize("name", ["mean", "product"])
@pytest.mark.parametrize("logits", [[40.0, 45.0], [-800.0, 3.0], [-800.0, -700.0], [900.0, 800.0]])
def test_aggregations_keep_apart_what_rounds_to_0_or_1(name: str, logits: list[float]) -> None:
    getcontext().prec = 1000
    scores = [1 / (1 + Decimal(-x).exp()) for x in logits]
    score = sum(scores) / 2 if name == "mean" else scores[0] * scores[1]
    expected = float((score / (1 - score)).ln())
    assert aggregate(logits, name) == pytest.approx(expected, rel=1e-12)


def test_rules_by_name() -> None:
    assert split_rule("vote") == (True, "mean_logit")
    assert split_rule("vote+min") == (True, "min")
    assert split_rule("min") == (False, "min")
    with pytest.raises(UserError, match="did you mean 'mean_logit'"):
        split_rule("mean_logits")
    with pytest.raises(UserError, match=r"did you mean 'vote\+product'"):
        split_rule("vote+produkt")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000.00"),
        (" $18 ", "18."),
        ("(B)", "b"),
        ("B.", "b"),
        ("red  blue", "Red blue"),
        ("-0", "0"),
        ("1e3", "1E3"),
        (".5", "0.50"),
    ],
)
def test_answers_that_differ_in_writing(one: str, other: str) -> None:
    assert normalised_answer(one) == normalised_answer(other) is not None


def test_answers_that_differ() -> None:
    answers = ["1", "10", "1.01", "-1", "1/2", "0.5", "12,34", "1234", "a", "b", "ab", "1" * 60]
    assert len({normalised_answer(answer) for answer in answers}) == len(answers)
    assert normalised_answer(None) is normalised_answer(" $. ") is None


def test_the_choice_its_margin_and_ties() -> None:
    found = choose([[0.0, 1.0], [2.0], [2.0], []])
    assert found.choice == 1
    assert found.margin == 0.0
    assert found.aggregated == pytest.approx([sigma(0.5), sigma(2), sigma(2), 0.0], rel=1e-12)
    assert choose([[1.0], [0.0]]).margin == pytest.approx(sigma(1) - 0.5, rel=1e-12)
    alone = choose([[1.0]])
    assert (alone.choice, alone.margin, alone.votes) == (0, None, None)
    assert choose([[], []]).choice == 0  # nothing to score: the first


def test_votes_by_hand() -> None:
    logits = [[3.0], [1.0], [0.5], [0.0], [9.0]]
    found = choose(logits, "vote", ["5", "7", "7.0", "5", None])
    five, seven = sigma(3) + 0.5, sigma(1) + sigma(0.5)
    assert found.votes == pytest.approx([five, seven, seven, five, 0.0], rel=1e-12)
    assert found.choice == 0
    assert found.margin == pytest.approx(five - seven, rel=1e-12)
    # By another aggregation, another winner: of its candidates, the first.
    low = [[3.0, -9.0], [1.0], [0.5], [0.0, -9.0], [9.0]]
    assert choose(low, "vote+min", ["5", "7", "7", "5", None]).choice == 1
    # Equal answers lead nobody; without answers, scores decide.
    assert choose([[1.0], [0.0]], "vote", ["a", "A"]).margin is None
    nobody = choose([[1.0], [2.0], [2.0]], "vote", [None, None, None])
    assert (nobody.choice, nobody.votes, nobody.margin) == (1, [0.0, 0.0, 0.0], None)
    # Equal votes are equal in whatever order they come, and the first answer wins.
    assert choose([[0.1]] * 6, "vote", ["x", "y", "y", "x", "y", "x"]).choice == 0


def subsets_of(size: int, n: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(size), n))


@pytest.mark.parametrize("seed", range(6))
def test_expectations_equal_enumeration(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(1, 8)
    logits = [[float(rng.randint(-2, 2)) for _ in range(rng.randint(0, 2))] for _ in range(size)]
    right = [rng.random() < 0.4 for _ in range(size)]
    answers = [rng.choice(["1", "2", "3", None]) for _ in range(size)]
    scores = [aggregate(steps) for steps in logits]
    weights = [probability(score) for score in scores]
    for n in range(1, size + 1):
        every = subsets_of(size, n)
        best = [right[s[first_best([scores[i] for i in s])]] for s in every]
        assert expected_best(scores, right, n) == pytest.approx(np.mean(best), abs=1e-12)
        some = [any(right[i] for i in s) for s in every]
        assert pass_at(right, n) == pytest.approx(np.mean(some), abs=1e-12)
        votes = [
            right[s[choose([logits[i] for i in s], "vote", [answers[i] for i in s]).choice]]
            for s in every
        ]
        groups = answer_groups(answers)
        found = expected_vote(weights, groups, right, n, (0,))
        assert found == pytest.approx(np.mean(votes), abs=1e-12)
        candidates = [Candidate((), a, r) for a, r in zip(answers, right, strict=True)]
        majority = [majority_by_hand([candidates[i] for i in s]) for s in every]
        assert majority_chance(candidates, n) == pytest.approx(np.mean(majority), abs=1e-12)
        fair = [majority_at_random([candidates[i] for i in s]) for s in every]
        answered = [r and g >= 0 for r, g in zip(right, groups, strict=True)]
        found = expected_majority(groups, answered, n, (0,))
        assert found == pytest.approx(np.mean(fair), abs=1e-12)
    assert expected_best(scores, right, size + 5) == expected_best(scores, right, size)


def majority_by_hand(candidates: list[Candidate]) -> bool:
    answers = [c.answer for c in candidates if c.answer is not None]
    if not answers:
        return False
    top = max(answers, key=answers.count)
    return bool(next(c.correct for c in candidates if c.answer == top))


def majority_at_random(candidates: list[Candidate]) -> float:
    answers = [c.answer for c in candidates if c.answer is not None]
    most = max(map(answers.count, answers), default=0)
    top = {answer for answer in answers if answers.count(answer) == most}
    shares = [np.mean([bool(c.correct) for c in candidates if c.answer == a]) for a in top]
    return float(np.mean(shares)) if shares else 0.0


def test_all_right_all_wrong_and_one_candidate() -> None:
    for n in (1, 2, 3):
        assert expected_best([1.0, 2.0, 3.0], [True] * 3, n) == pytest.approx(1.0, abs=1e-12)
        assert expected_best([1.0, 2.0, 3.0], [False] * 3, n) == 0.0
        assert (pass_at([True] * 3, n), pass_at([False] * 3, n)) == (1.0, 0.0)
    assert expected_best([0.0], [True], 1) == pass_at([True], 1) == 1.0


def test_drawn_subsets_come_near_the_exact_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    weights = [rng.random() for _ in range(9)]
    groups = np.array([0, 1, 0, 2, -1, 1, 2, 0, 1])
    right = [group == 1 for group in groups]
    exact = expected_vote(weights, groups, right, 4, (0,))
    best_of_n._all_subsets.cache_clear()
    monkeypatch.setattr(best_of_n, "is_exact", lambda candidates, n: False)
    drawn = expected_vote(weights, groups, right, 4, (0,))
    best_of_n._all_subsets.cache_clear()
    # Of 20,000 draws the standard error is at most 0.0036.
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.015)


def test_the_values_of_n() -> None:
    assert [sizes(k) for k in (1, 2, 5, 8)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8]]


def test_every_aggregation_never_prefers_the_lower_scores() -> None:
    rng = random.Random(0)
    for name in AGGREGATIONS:
        for _ in range(50):
            low = [rng.uniform(-5, 5) for _ in range(4)]
            high = [value + rng.random() for value in low]
            assert aggregate(high, name) >= aggregate(low, name)
