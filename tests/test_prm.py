"""DreamPRM's two losses against hand-made numbers, and the meta objectives' properties."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamprm.data.batches import BatchStream
from dreamprm.data.trajectory import Candidate, SelectionQuestion, Trajectory
from dreamprm.errors import UserError
from dreamprm.evaluation.accuracy import evaluate_selection
from dreamprm.problems.meta_losses import META_LOSSES, aggregation_mse, calibrated, pairwise
from dreamprm.problems.prm import DomainWeighting, PRMFineTuning
from dreamprm.scoring.aggregation import aggregate, mean_logit
from dreamprm.tasks.prm.batches import meta_batches
from dreamprm.weighting.groups import DomainTable


class Fixed(nn.Module):
    """A reward model that always says the same."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.logits


def test_the_lower_loss_is_the_papers_sum_over_domains() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    labels = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]]).bool()
    domain = torch.tensor([0, 0, 1, 1])
    table = DomainTable(["a", "b"]).double()
    table.alpha.data = torch.tensor([0.3, -1.0], dtype=torch.float64)
    batch = {"step_labels": labels, "label_mask": mask, "domain": domain}
    problem = PRMFineTuning(module=Fixed(logits))
    found = (table(batch, labels) * problem.sample_losses(batch)).mean()
    weights = [math.log1p(math.exp(a)) for a in (0.3, -1.0)]
    expected = 0.0
    for k in (0, 1):
        squares = [
            (1 / (1 + math.exp(-logits[i, j].item())) - labels[i, j].item()) ** 2
            for i in range(4)
            for j in range(3)
            if domain[i] == k and mask[i, j]
        ]
        # L_k: the mean over the domain's labelled steps.
        expected += weights[k] / (sum(weights) / 2) * sum(squares) / len(squares) / 2
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_domain_without_labels_costs_nothing() -> None:
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    problem = PRMFineTuning(module=Fixed(logits))
    batch = {
        "step_labels": torch.full((3, 2), 0.5),
        "label_mask": torch.tensor([[True, False], [False, False], [False, False]]),
        "domain": torch.tensor([0, 1, 1]),
    }
    found = problem.sample_losses(batch)
    # One labelled step in the whole of the first domain: its own squared error.
    expected = (problem.module.logits[0, 0].sigmoid() - 0.5).square()
    assert torch.allclose(found, torch.stack([expected, 0 * expected, 0 * expected]))
    assert torch.autograd.grad(found.sum(), problem.module.logits)[0].isfinite().all()


def test_cross_entropy_is_that_of_the_label() -> None:
    logits = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    problem = PRMFineTuning(module=Fixed(logits), step_loss="cross_entropy")
    batch = {
        "step_labels": torch.tensor([[0.25, 0.9]], dtype=torch.float64),
        "label_mask": torch.tensor([[True, True]]),
        "domain": torch.tensor([0]),
    }
    probabilities = [1 / (1 + math.exp(-x)) for x in (0.3, -1.2)]
    expected = [
        -(r * math.log(p) + (1 - r) * math.log(1 - p))
        for p, r in zip(probabilities, (0.25, 0.9), strict=True)
    ]
    found = problem.sample_losses(batch).item()
    assert found == pytest.approx(sum(expected) / 2, rel=1e-12)


@pytest.mark.parametrize("build", [PRMFineTuning, DomainWeighting])
def test_micro_batches_count_by_their_solutions(build: Any) -> None:
    batches = [{"outcome": torch.zeros(n)} for n in (1, 5, 2)]
    assert build().shares(batches) == [1 / 8, 5 / 8, 2 / 8]


def test_the_meta_loss_is_of_all_steps_with_its_options() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0], [-1.0, 5.0]], dtype=torch.float64)
    steps = torch.tensor([[True, True], [True, True], [True, False]])
    problem = DomainWeighting(meta_loss="calibrated", options={"ridge": 7.0})
    problem.prm = Fixed(logits)
    batch = {
        "step_mask": steps,
        "label_mask": torch.zeros_like(steps),
        "outcome": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
        "question": torch.zeros(3),
    }
    found = problem.training_step(batch)
    scores = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    expected = calibrated(scores, batch["outcome"], batch["question"], ridge=7.0)
    assert torch.equal(found["loss"], expected)
    assert not torch.allclose(expected, calibrated(scores, batch["outcome"], batch["question"]))
    assert found["accuracy"].item() == pytest.approx(2 / 3)
    with pytest.raises(UserError, match=r"ridge is 0.0, expected more than 0"):
        DomainWeighting(meta_loss="calibrated", options={"ridge": 0.0})


def test_weights_start_at_one_and_average_one() -> None:
    table = DomainTable(["a", "b", "c"])
    assert table.named_weights() == {"a": 1.0, "b": 1.0, "c": 1.0}
    table.alpha.data = torch.tensor([5.0, -5.0, 0.0])
    assert table.weights().mean().item() == pytest.approx(1.0)
    assert (table.weights() > 0).all()


def test_aggregation_mse_is_the_papers() -> None:
    # σ of the mean of logit(0.9) and logit(0.5), against 1.
    logits = torch.tensor([[math.log(9.0), 0.0, 99.0]])
    mask = torch.tensor([[True, True, False]])
    score = mean_logit(logits, mask)
    assert score.item() == pytest.approx(math.log(9.0) / 2)
    loss = aggregation_mse(score, torch.tensor([1.0]), torch.tensor([0]))
    assert loss.item() == pytest.approx((3 / 4 - 1) ** 2)


def test_weights_share_one_mean_and_go_to_their_samples() -> None:
    table = DomainTable(["a", "b", "c"]).double()
    assert torch.equal(table.alpha.data, torch.zeros(3, dtype=torch.float64))
    table.alpha.data = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    positive = [math.log1p(math.exp(a)) for a in (0.3, -1.0, 2.0)]
    expected = [3 * p / sum(positive) for p in positive]
    batch = {"domain": torch.tensor([2, 0, 0])}
    found = table(batch, torch.zeros(3))
    assert found.tolist() == pytest.approx([expected[2], expected[0], expected[0]], rel=1e-12)
    # They sum to a constant: so do their derivatives.
    (gradient,) = torch.autograd.grad(table.weights().sum(), table.alpha)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_at_least_fp32(dtype: torch.dtype) -> None:
    assert DomainTable(["a", "b"]).to(dtype).weights().dtype == torch.float32


OUTCOME = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
QUESTION = torch.tensor([0, 0, 1, 1, 2])


@pytest.mark.parametrize("name", META_LOSSES)
def test_only_the_level_invariant_losses_ignore_the_level(name: str) -> None:
    scores = torch.tensor([0.5, 0.2, 1.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    outcome = OUTCOME.double()
    loss = META_LOSSES[name].value(scores, outcome, QUESTION)
    shifted = META_LOSSES[name].value(scores + 3.0, outcome, QUESTION)
    (gradient,) = torch.autograd.grad(loss, scores)
    if name in ("aggregation_mse", "probability_mse", "step_cross_entropy"):
        assert abs(loss.item() - shifted.item()) > 0.01
        assert abs(gradient.sum().item()) > 0.01
    else:
        # Newton's method stops at a gradient of 1e-10.
        assert loss.item() == pytest.approx(shifted.item(), abs=1e-9)
        assert abs(gradient.sum().item()) < 1e-9
    # Raising a right solution's score never hurts, nor does lowering a wrong one's.
    assert all(g <= 0 for g in gradient[OUTCOME == 1])
    assert all(g >= 0 for g in gradient[OUTCOME == 0]) or name == "calibrated"


def test_pairwise_by_hand() -> None:
    scores = torch.tensor([0.5, -0.2, 1.0, 0.7, 2.0])
    within = [0.5 - -0.2, 1.0 - 0.7]
    expected = sum(math.log1p(math.exp(-d)) for d in within) / 2
    assert pairwise(scores, OUTCOME, QUESTION).item() == pytest.approx(expected, rel=1e-6)
    across = [r - w for r in (0.5, 1.0) for w in (-0.2, 0.7, 2.0)]
    expected = sum(math.log1p(math.exp(-d)) for d in across) / 6
    apart = torch.arange(5)
    assert pairwise(scores, OUTCOME, apart).item() == pytest.approx(expected, rel=1e-6)


def test_the_ridge_pulls_the_slope_to_one() -> None:
    """A large one leaves the offset alone to be fitted, a small one nothing but the best fit."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(40, generator=generator, dtype=torch.float64)
    outcome = (scores + 3 * torch.randn(40, generator=generator) > 0).double()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits
    limits = {}
    for name, free in (("slope and offset", 1.0), ("offset", 0.0)):
        theta = torch.tensor([1.0, 0.0], dtype=torch.float64)
        for _ in range(100):  # Newton's method
            leaf = theta.clone().requires_grad_()
            value = cross_entropy(leaf[0] * scores + leaf[1], outcome)
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            rows = [torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in gradient]
            hessian = torch.stack(rows)
            hessian = hessian * torch.tensor([[free, free], [free, 1.0]])
            hessian[0, 0] += 1 - free
            step = torch.linalg.solve(hessian, gradient.detach() * torch.tensor([free, 1.0]))
            theta = theta - step
        limits[name] = value.item()
    question = torch.arange(40)
    found = [calibrated(scores, outcome, question, ridge=ridge).item() for ridge in (1e-9, 1e9)]
    # Off by the ridge, or by its inverse, times numbers of the size of 1.
    assert found == pytest.approx([limits["slope and offset"], limits["offset"]], abs=1e-7)
    assert found[1] - found[0] > 0.01


@pytest.mark.parametrize("loss", [pairwise, calibrated])
def test_one_outcome_only_cannot_be_compared(loss: Any) -> None:
    with pytest.raises(ValueError, match="needs right and wrong"):
        loss(torch.zeros(3), torch.ones(3), torch.arange(3))


def solution(number: int, question: str, outcome: bool) -> Trajectory:
    return Trajectory(f"{number}", "meta", question, ("a",), outcome=outcome)


def test_meta_batches_hold_what_the_loss_needs() -> None:
    def encode(rows: list[Trajectory]) -> list[Trajectory]:
        return rows

    singles = [solution(i, f"q{i}", i % 4 == 0) for i in range(40)]
    stream = iter(meta_batches(singles, "pairwise", 8, encode, 0))  # type: ignore[arg-type]
    for _ in range(12):
        assert sum(bool(row.outcome) for row in next(stream)) == 4
    several = [solution(i, f"q{i // 4}", i % 4 == 0 and i < 20) for i in range(40)]
    stream = iter(meta_batches(several, "calibrated", 8, encode, 0))  # type: ignore[arg-type]
    for _ in range(2):  # within the first epoch of five questions
        questions = [row.question for row in next(stream)]
        # Two whole questions, each with a right solution (the first five have one).
        assert len(questions) == 8
        assert len(set(questions)) == 2
        assert set(questions) <= {f"q{i}" for i in range(5)}
    one = [solution(i, f"q{i}", True) for i in range(4)]
    with pytest.raises(UserError, match="all 4 usable solutions of the meta set are right"):
        meta_batches(one, "pairwise", 2, encode, 0)  # type: ignore[arg-type]
    meta_batches(one, "aggregation_mse", 2, encode, 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"upper\.batch_size is 1"):
        meta_batches(singles, "pairwise", 1, encode, 0)  # type: ignore[arg-type]


def test_a_meta_set_of_one_question_is_stratified_by_outcome() -> None:
    """Whole questions would be the whole meta set in every batch."""
    rows = [solution(i, "q", i % 4 == 0) for i in range(40)]
    stream = iter(meta_batches(rows, "pairwise", 8, list, 0))  # type: ignore[arg-type]
    for _ in range(12):
        batch = next(stream)
        assert (len(batch), sum(bool(row.outcome) for row in batch)) == (8, 4)


def test_questions_larger_than_a_batch_come_whole() -> None:
    rows = [solution(i, f"q{i // 10}", i % 2 == 0) for i in range(40)]
    stream = iter(meta_batches(rows, "pairwise", 4, list, 0))  # type: ignore[arg-type]
    for _ in range(4):
        batch = next(stream)
        assert len(batch) == 10
        assert len({row.question for row in batch}) == 1


def test_from_a_tenth_on_questions_with_both_outcomes_are_compared_within() -> None:
    rows = [solution(i, f"q{max(i, 3)}", i % 2 == 0) for i in range(40)]  # q3 has four of both
    batch = next(iter(meta_batches(rows, "pairwise", 8, list, 0)))  # type: ignore[arg-type]
    assert {row.question for row in batch} == {"q3"}


@pytest.mark.parametrize("loss", ["pairwise", "calibrated", "step_pairwise"])
def test_a_few_questions_with_both_outcomes_do_not_speak_for_all(loss: str) -> None:
    rows = [solution(i, f"q{max(i, 1)}", i % 2 == 0) for i in range(40)]  # q1 has both
    rows = [replace(row, step_labels=(1.0,) * len(row.steps)) for row in rows]
    stream = iter(meta_batches(rows, loss, 8, list, 0))  # type: ignore[arg-type]
    seen = [row for _ in range(5) for row in next(stream)]
    assert len({row.id for row in seen}) == 40
    assert sum(bool(row.outcome) for row in seen) == 20


def test_a_loss_of_steps_takes_whole_questions_apart() -> None:
    rows = [solution(i, f"q{i // 2}", i % 2 == 0) for i in range(40)]
    rows = [replace(row, step_labels=(1.0,) * len(row.steps)) for row in rows]
    batch = next(iter(meta_batches(rows, "step_pairwise", 8, list, 0)))  # type: ignore[arg-type]
    assert len({row.question for row in batch}) > 4


def test_one_pair_within_a_question_is_not_the_whole_loss() -> None:
    scores = torch.tensor([0.5, -0.2, 1.0, 0.7, 2.0, 0.1], dtype=torch.float64)
    outcome = torch.tensor([1, 0, 1, 0, 0, 1]).double()
    right, wrong = scores[outcome == 1], scores[outcome == 0]
    terms = [math.log1p(math.exp(w - r)) for r in right.tolist() for w in wrong.tolist()]
    found = pairwise(scores, outcome, torch.tensor([0, 0, 1, 2, 3, 4]))
    assert found.item() == pytest.approx(sum(terms) / 9)


def test_questions_with_one_outcome_only_are_left_out() -> None:
    outcomes = [True, True, True, False, False, False, True, False]
    rows = [solution(i, f"q{i // 2}", outcome) for i, outcome in enumerate(outcomes)]
    stream = iter(meta_batches(rows, "calibrated", 4, list, 0))  # type: ignore[arg-type]
    seen = {row.question for _ in range(4) for row in next(stream)}
    assert seen == {"q1", "q3"}


@pytest.mark.parametrize("loss", [n for n, found in META_LOSSES.items() if not found.of_steps])
def test_the_order_of_the_meta_set_is_a_function_of_the_seed(loss: str) -> None:
    for rows in (
        [solution(i, f"q{i}", i % 2 == 0) for i in range(40)],
        [solution(i, f"q{i // 4}", i % 2 == 0) for i in range(40)],
    ):
        batches = [
            [next(iter(meta_batches(rows, loss, 8, list, seed))) for _ in range(2)]  # type: ignore
            for seed in (0, 1)
        ]
        assert batches[0][0] == batches[0][1]
        assert batches[0] != batches[1]


def test_a_loss_of_each_solution_alone_draws_from_the_whole_meta_set() -> None:
    rows = [solution(i, f"q{i // 4}", i % 8 == 0) for i in range(40)]
    stream = iter(meta_batches(rows, "aggregation_mse", 1, list, 0))  # type: ignore[arg-type]
    assert sorted(int(next(stream)[0].id) for _ in range(40)) == list(range(40))


def test_a_meta_set_of_one_outcome_is_named(caplog: pytest.LogCaptureFixture) -> None:
    for outcome, word in ((True, "right"), (False, "wrong")):
        rows = [solution(i, f"q{i}", outcome) for i in range(4)]
        caplog.clear()
        meta_batches(rows, "aggregation_mse", 2, list, 0)  # type: ignore[arg-type]
        assert f"all 4 usable solutions of the meta set are {word}" in caplog.text
        with pytest.raises(UserError, match=f"meta set are {word}: meta_loss=calibrated"):
            meta_batches(rows, "calibrated", 2, list, 0)  # type: ignore[arg-type]


def test_unknown_losses_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'squared_error'"):
        PRMFineTuning(step_loss="square_error")
    with pytest.raises(UserError, match="did you mean 'pairwise'"):
        DomainWeighting(meta_loss="pair_wise")


def test_batches_are_stratified_without_replacement_and_a_function_of_the_seed() -> None:
    groups = ["a"] * 6 + ["b"] * 3
    stream = BatchStream(list(range(9)), 4, list, seed=3, groups=groups)
    batches = [stream.indices(i) for i in range(9)]
    for batch in batches:
        assert sorted(groups[i] for i in batch) == ["a", "a", "b", "b"]
    drawn = [i for batch in batches for i in batch]
    assert sorted(i for i in drawn if i < 6) == sorted([*range(6)] * 3)
    assert sorted(i for i in drawn if i >= 6) == sorted([*range(6, 9)] * 6)
    again = BatchStream(list(range(9)), 4, list, seed=3, groups=groups)
    assert again.indices(7) == batches[7]
    assert BatchStream(list(range(9)), 4, list, seed=4, groups=groups).indices(0) != batches[0]


def test_selection_by_hand() -> None:
    def candidate(source: str, answer: str | None, correct: bool) -> Candidate:
        return Candidate(("s",), answer, correct, (float(correct),), source)

    questions = [
        SelectionQuestion(
            "1",
            "?",
            (candidate("x", "3", True), candidate("y", "4", False), candidate("z", "4", False)),
        ),
        SelectionQuestion(
            "2",
            "?",
            (candidate("x", None, False), candidate("y", "5", False), candidate("z", "6", True)),
        ),
    ]
    logits = [[[2.0], [1.0], [0.0]], [[3.0], [0.5], [0.4]]]
    found = evaluate_selection(questions, logits)
    assert found["best_of_n"] == 0.5
    assert found["random_pick"] == pytest.approx(1 / 3)
    assert found["pass_at_n"] == 1.0
    assert found["majority_vote"] == 0.0
    assert found["best_source"] == 0.5
    # Right: 2.0, 0.4. Wrong: 1.0, 0.0, 3.0, 0.5. Pairs ranked right: 3 + 1 of 8.
    assert found["step_auc"] == pytest.approx(0.5)
    assert aggregate([]) == -math.inf
    one = SelectionQuestion("q", "?", (Candidate(("s",), None, True, (1.0,)),))
    assert evaluate_selection([one], [[[2.0]]])["step_auc"] is None


def test_the_meta_losss_options_reach_it() -> None:
    logits = torch.tensor([[2.0], [-1.0], [0.5], [0.3]], dtype=torch.float64)
    batch = {
        "step_mask": torch.ones(4, 1, dtype=torch.bool),
        "outcome": torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
        "question": torch.arange(4),
    }
    found = []
    for options in ({}, {"ridge": 0.7}):
        problem = DomainWeighting(meta_loss="calibrated", options=options)
        problem.prm = Fixed(logits)
        found.append(problem.training_step(batch)["loss"].item())
    scores = logits[:, 0]
    expected = [
        calibrated(scores, batch["outcome"], batch["question"], ridge=r).item() for r in (0.1, 0.7)
    ]
    assert found == expected
    assert abs(found[0] - found[1]) > 0.01
