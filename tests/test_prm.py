"""DreamPRM's two losses against hand-made numbers, and the meta objectives' properties."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamprm.data.batches import BatchStream
from dreamprm.data.trajectory import Candidate, SelectionQuestion, Trajectory
from dreamprm.engines.batches import meta_batches
from dreamprm.errors import UserError
from dreamprm.inference.aggregation import aggregate, mean_logit
from dreamprm.inference.evaluation import auc, evaluate_selection
from dreamprm.models.weighting import DomainTable
from dreamprm.problems.meta_losses import META_LOSSES, aggregation_mse, calibrated, pairwise
from dreamprm.problems.prm import DomainWeighting, PRMFineTuning


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


OUTCOME = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
QUESTION = torch.tensor([0, 0, 1, 1, 2])


@pytest.mark.parametrize("name", META_LOSSES)
def test_only_the_level_invariant_losses_ignore_the_level(name: str) -> None:
    scores = torch.tensor([0.5, -0.2, 1.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    outcome = OUTCOME.double()
    loss = META_LOSSES[name](scores, outcome, QUESTION)
    shifted = META_LOSSES[name](scores + 3.0, outcome, QUESTION)
    (gradient,) = torch.autograd.grad(loss, scores)
    if name == "aggregation_mse":
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
    assert auc([1.0, 2.0], [True, True]) is None


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
        calibrated(scores, batch["outcome"], batch["question"], r).item() for r in (0.1, 0.7)
    ]
    assert found == expected
    assert abs(found[0] - found[1]) > 0.01
