"""Finite differences: their step, and how they say that they cannot be relied on."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, softplus

from dreamprm.errors import UserError
from dreamprm.hypergradients import Point, hypergradient, implicit, resolve
from dreamprm.hypergradients.precision import PrecisionWarning
from dreamprm.hypergradients.products import FiniteDifference
from dreamprm.hypergradients.references import Reference, relative_error
from tests.test_products import small_problem

Losses = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def converged(seed: int) -> tuple[Losses, list[Tensor], list[Tensor]]:
    """A small network with layer norm and weight decay after 3,000 steps of Adam, in fp32.

    Its first weights are small, since only their direction counts, and curve the loss by 1/‖W‖².
    """
    generator = torch.Generator().manual_seed(seed)
    x, y, x_meta, y_meta = (
        torch.randn(rows, columns, generator=generator)
        for rows, columns in ((40, 4), (40, 2), (20, 4), (20, 2))
    )
    lower = [torch.randn(4, 5, generator=generator), torch.randn(5, 2, generator=generator)]
    upper = [torch.randn(3, generator=generator)]
    domain = torch.arange(40) % 3

    def network(lower: list[Tensor], x: Tensor) -> Tensor:
        return torch.tanh(layer_norm(x.to(lower[0].dtype) @ lower[0], (5,))) @ lower[1]

    def lower_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        weights = softplus(upper[0])
        losses = (network(lower, x) - y).square().mean(1)
        decay = torch.stack([p.square().sum() for p in lower]).sum()
        return ((weights / weights.mean())[domain] * losses).mean() + 0.01 * decay

    def upper_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        return (network(lower, x_meta) - y_meta).square().mean()

    lower = [p.requires_grad_() for p in lower]
    optimizer = torch.optim.Adam(lower, lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 3000)
    for _ in range(3000):
        optimizer.zero_grad()
        lower_loss(lower, upper).backward()
        optimizer.step()
        schedule.step()
    return (upper_loss, lower_loss), [p.detach() for p in lower], upper


@pytest.mark.filterwarnings("error::dreamprm.hypergradients.precision.PrecisionWarning")
def test_near_convergence_the_default_is_right_and_the_difference_too() -> None:
    """In fp32 against float64; with a step of 4e-3 it is 14 % and 0.8 % off."""
    for seed in (0, 2):
        losses, lower, upper = converged(seed)
        lower64, upper64 = ([t.double() for t in ts] for ts in (lower, upper))
        (exact,) = hypergradient("t1t2", *losses, lower64, upper64)
        (found,) = hypergradient("identity", *losses, lower, upper)
        # Rounding of fp32, 6e-8, times the cancellation between samples that pull against
        # each other at a minimum.
        assert relative_error(found, exact) < 1e-4
        (found,) = hypergradient("darts", *losses, lower, upper)
        assert relative_error(found, exact) < 2e-2


def test_a_step_that_is_too_long_or_too_short_is_noticed() -> None:
    losses, lower, upper = converged(0)
    # With the last one, φ does not move at all, and every difference is 0.
    for epsilon in (0.01, 1e-7, 1e-12):
        with pytest.warns(PrecisionWarning, match="of two steps are .* apart"):
            hypergradient("darts", *losses, lower, upper, epsilon=epsilon)


def test_it_is_looked_at_at_the_first_and_every_nth_difference() -> None:
    """Two evaluations each, and two more where it is."""
    evaluations = 0

    def loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return (upper[0] * lower[0].square()).sum()

    lower, upper = ([torch.ones(2, dtype=torch.float64)] for _ in range(2))
    for every, expected in ((3, [4, 2, 2, 4, 2, 2]), (0, [2, 2, 2])):
        memory: dict[str, Any] = {}
        found = []
        for _ in expected:
            evaluations = 0
            FiniteDifference(loss, lower, upper, check_every=every, memory=memory).cross(lower)
            found.append(evaluations)
        assert found == expected
    with pytest.raises(UserError, match="check_every is -1, expected a whole number of at least 0"):
        hypergradient("darts", loss, loss, lower, upper, check_every=-1)


def test_the_step_is_as_documented() -> None:
    """Of length u^⅓ in units of the entries of each tensor, a tenth of all entries' at least."""
    lower = [torch.full((3, 2), 0.5), torch.zeros(4), torch.full((2,), -4.0)]
    q = [torch.full((3, 2), 2.0), torch.ones(4), torch.zeros(2)]
    rms = math.sqrt((6 * 0.25 + 2 * 16) / 12)
    relative = math.sqrt(6 * 4 / 0.5**2 + 4 / (rms / 10) ** 2)

    def step(lower: list[Tensor], q: list[Tensor], bits: int = 23) -> float:
        return FiniteDifference(lambda p, a: p[0].sum(), lower, [], bits=bits).step(q)

    for bits, u in ((23, 2**-24), (52, 2**-53)):
        assert step(lower, q, bits) == pytest.approx(u ** (1 / 3) / relative, rel=1e-6)
    assert step([2 * p for p in lower], q) == pytest.approx(2 * step(lower, q), rel=1e-6)
    # Where φ is 0, it has no size: a step of length u^⅓.
    assert step([torch.zeros(4)], [torch.ones(4)]) == pytest.approx(2**-9, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_step_goes_with_the_precision(dtype: torch.dtype) -> None:
    """A step thirty times longer truncates more, one thirty times shorter rounds more."""
    error: dict[float, list[float]] = {1 / 30: [], 1.0: [], 30.0: []}
    for seed in range(20):
        upper, lower, phi, alpha = small_problem(seed, 4, 3)
        exact = torch.cat([g.reshape(-1) for g in hypergradient("t1t2", upper, lower, phi, alpha)])
        phi, alpha = ([t.to(dtype) for t in ts] for ts in (phi, alpha))
        upper, lower, _, _ = small_problem(seed, 4, 3, dtype)
        leaves = [p.clone().requires_grad_() for p in phi]
        v = list(torch.autograd.grad(upper(leaves, alpha), leaves))
        length = torch.cat([g.reshape(-1) for g in v]).norm()
        default = FiniteDifference(lower, phi, alpha).step(v) * float(length)
        for factor in error:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PrecisionWarning)  # of steps that are wrong
                found = hypergradient("darts", upper, lower, phi, alpha, epsilon=factor * default)
            flat = torch.cat([g.reshape(-1) for g in found])
            error[factor].append(relative_error(flat, exact))
    median = {factor: sorted(errors)[10] for factor, errors in error.items()}
    assert median[1.0] < median[30.0]
    assert median[1.0] < median[1 / 30]
    assert median[1.0] < (1e-3 if dtype == torch.float32 else 1e-8)


class Doubled(torch.autograd.Function):
    """2x, without a forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


def test_without_forward_mode_the_default_takes_differences_and_says_so(
    ridge: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    """Tried once only: the next hypergradient of the same problem takes differences at once."""
    tried = 0

    def lower(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        nonlocal tried
        tried += 1
        return ridge.lower([Doubled.apply(p) / 2 for p in phi], alpha)

    def upper(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        return ridge.upper(phi, alpha)

    implicit._announce.cache_clear()
    caplog.set_level(logging.INFO, "dreamprm")
    (found,) = hypergradient("identity", upper, lower, ridge.parameters(), [ridge.alpha])
    (exact,) = hypergradient("t1t2", upper, ridge.lower, ridge.parameters(), [ridge.alpha])
    assert relative_error(found, exact) < 1e-8
    assert "identity: no forward mode here" in caplog.text
    assert "identity: products by finite difference" in caplog.text
    method, memory = resolve("identity"), {}
    counts = []
    for _ in range(3):
        tried = 0
        point = Point(lower, ridge.parameters(), [ridge.alpha], 52, memory=memory)
        method.indirect(point, ridge.parameters(), {})
        counts.append(tried)
    assert counts == [5, 2, 2]  # the attempt, the difference, and the second one that checks it
    with pytest.raises(UserError, match="forward mode does not work for this lower loss"):
        hypergradient("t1t2", upper, lower, ridge.parameters(), [ridge.alpha])
