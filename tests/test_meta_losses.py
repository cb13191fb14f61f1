"""The calibrated meta loss against another optimiser and differences of its own values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dreamprm.errors import UserError
from dreamprm.problems import meta_losses
from dreamprm.problems.meta_losses import calibrated

KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "noise": lambda noise, outcome: noise,
    "good": lambda noise, outcome: noise + outcome,
    "separable": lambda noise, outcome: noise.abs() * (2 * outcome - 1),
}


def batches(kind: str, sizes: tuple[int, ...], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores of order 1 and outcomes, both kinds of them in every batch."""
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        right = int(torch.randint(1, size, (1,), generator=generator))
        outcome = (torch.randperm(size, generator=generator) < right).double()
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        yield KINDS[kind](noise, outcome), outcome


def value(scores: Tensor, outcome: Tensor, ridge: float = 0.1) -> Tensor:
    return calibrated(scores, outcome, torch.arange(len(scores)), ridge=ridge)


def gradient(scores: Tensor, outcome: Tensor, ridge: float = 0.1) -> Tensor:
    scores = scores.detach().requires_grad_()
    return torch.autograd.grad(value(scores, outcome, ridge), scores)[0]


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    """Derivatives along every axis, the error h⁴/30 of the fifth derivative."""
    rows = []
    for axis in step * torch.eye(len(at), dtype=at.dtype):
        one, two = (function(at + n * axis) - function(at - n * axis) for n in (1, 2))
        rows.append((8 * one - two) / (12 * step))
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("ridge", [1e-6, 0.1, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_value(kind: str, ridge: float, scale: float) -> None:
    for scores, outcome in batches(kind, (2, 4, 9)):
        scores = scores * scale
        found = gradient(scores, outcome, ridge)
        # Values turn within a unit of a·s, and a of large or separated scores is near 1.
        step = 2e-4 * min(1.0, scale)
        expected = differences(lambda s, r=outcome: value(s, r, ridge), scores, step)
        # u / h of the value's rounding, and h⁴ of the fifth derivative, of the scores over scale.
        assert (found - expected).norm() < 1e-8 * found.norm() + 1e-11 / min(1.0, scale)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_derivative_is_that_of_the_value_too(kind: str) -> None:
    for scores, outcome in batches(kind, (2, 5, 16)):
        found = torch.autograd.functional.hessian(lambda s, r=outcome: value(s, r), scores)
        expected = differences(lambda s, r=outcome: gradient(s, r), scores, 2e-3)
        assert (found - expected).norm() < 1e-8 * found.norm()


@pytest.mark.parametrize("ridge", [None, 0.01, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_minimum_and_its_default_ridge_a_tenth(
    kind: str, ridge: float | None
) -> None:
    options = {} if ridge is None else {"ridge": ridge}
    for scores, outcome in batches(kind, (2, 7, 40)):
        s, r = scores.numpy(), outcome.numpy()

        def objective(theta: np.ndarray, s: np.ndarray = s, r: np.ndarray = r) -> float:
            fit = np.logaddexp(0, (1 - 2 * r) * (theta[0] * s + theta[1])).mean()
            return float(fit + (0.1 if ridge is None else ridge) / 2 * (theta[0] - 1) ** 2)

        # Nelder and Mead stop within 1e-9 of the minimum's place: its square is off the value.
        tight = {"xatol": 1e-9, "fatol": 1e-15, "maxiter": 4000}
        expected = minimize(objective, [1.0, 0.0], method="Nelder-Mead", options=tight).fun
        found = calibrated(scores, outcome, outcome, **options)
        assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 100.0, 1e4, 1e6, 1e12, 1e200])
@pytest.mark.parametrize("ridge", [1e-300, 1e-9, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_any_scale_has_a_fit_and_a_bound(kind: str, ridge: float, scale: float) -> None:
    for scores, outcome in batches(kind, (2, 3, 8, 64)):
        found = value(scores * scale, outcome, ridge).item()
        p = outcome.mean().item()
        # Slope 0 and the best offset: the entropy of the outcomes, and the penalty of slope 0.
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        assert -1e-15 <= found < entropy + ridge / 2 + 1e-15
        assert gradient(scores * scale, outcome, ridge).isfinite().all()


def test_perfect_scores_cost_nothing_and_equal_ones_the_entropy() -> None:
    outcome = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert value(1e4 * (2 * outcome - 1), outcome).item() == pytest.approx(0, abs=1e-15)
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    for equal in (torch.zeros(4), torch.full((4,), 1e6)):
        assert value(equal.double(), outcome).item() == pytest.approx(entropy, rel=1e-14)
        # A slope of 1, which nothing pulls away, and p the share of right ones.
        expected = (0.25 - outcome) / 4
        assert torch.allclose(gradient(equal.double(), outcome), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fit_is_in_float64_whatever_the_scores(dtype: torch.dtype) -> None:
    ((scores, outcome),) = batches("good", (16,))
    low = (scores * 30 + 500).to(dtype)
    found, expected = gradient(low, outcome.to(dtype)), gradient(low.double(), outcome)
    assert value(low, outcome).dtype == found.dtype == dtype
    # Rounded once on the way back.
    assert (found - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("bad", [math.nan, -math.inf, 1e301])
def test_a_bad_score_is_named(bad: float) -> None:
    scores = torch.tensor([0.5, bad, 0.1], dtype=torch.float64)
    with pytest.raises(
        FloatingPointError, match=r"'calibrated'.* solution 2 of 3 is (nan|-inf|1e)"
    ):
        value(scores, torch.tensor([1.0, 0.0, 1.0]))


def test_a_fit_that_does_not_converge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_losses, "_logistic_fit", lambda *_: (1.0, 1e-8))
    with pytest.raises(FloatingPointError, match=r"'calibrated'.* gradient of 2.5e-09.* 0 to 0"):
        value(torch.zeros(2), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan])
def test_the_ridge_must_be_positive(ridge: float) -> None:
    with pytest.raises(UserError, match=r"ridge is .*, expected more than 0"):
        value(torch.tensor([0.5, 0.2]), torch.tensor([1.0, 0.0]), ridge)


def test_cross_entropy_alone_is_what_a_large_ridge_leaves() -> None:
    for scores, outcome in batches("good", (6,)):
        centred = scores - scores.mean()
        offsets = torch.linspace(-6, 6, 120_001, dtype=torch.float64)[:, None]
        fits = binary_cross_entropy_with_logits(
            centred + offsets, outcome.expand(len(offsets), -1), reduction="none"
        ).mean(1)
        # The offset's grid of 1e-4 leaves 1e-9, the slope's way from 1 of 1/ridge as much.
        assert value(scores, outcome, 1e9).item() == pytest.approx(fits.min().item(), abs=2e-9)
