"""The penalty method against its own equations, written out here with autograd."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout

from dreamprm.errors import UserError
from dreamprm.hypergradients import Point, hypergradient, indirect_gradient, resolve
from dreamprm.hypergradients.precision import PrecisionWarning
from dreamprm.hypergradients.references import VARIABLES, Reference, relative_error
from tests.references import loss_without_dropout, small_network, small_upper


@pytest.mark.parametrize("iterations", [1, 2, 6])
def test_both_sequences_take_the_steps_of_the_paper(reference: Reference, iterations: int) -> None:
    """Kwon et al. 2023, algorithm 1: y and z at once, ∇M where y is."""
    alpha, penalty, size = reference.alpha, 3.0, 0.2

    def gradient(at: Tensor, penalised: bool) -> Tensor:
        at = at.detach().requires_grad_()
        value = reference.lower([at], [alpha])
        if penalised:
            value = value + reference.upper([at], [alpha]) / penalty
        return torch.autograd.grad(value, at)[0]

    start = torch.linspace(-1, 1, VARIABLES, dtype=torch.float64)
    y = z = start
    for _ in range(iterations):
        y, z = y - size * gradient(y, True), z - size * gradient(z, False)
    at = alpha.clone().requires_grad_()
    difference = penalty * (reference.lower([y], [at]) - reference.lower([z], [at]))
    (expected,) = torch.autograd.grad(difference, at)
    options = {"iterations": iterations, "alpha": size, "penalty": penalty}
    (found,) = hypergradient("f2sa", reference.upper, reference.lower, [start], [alpha], **options)
    # Nothing but rounding, which the penalty and the cancellation multiply.
    assert relative_error(found, expected + alpha) < 1e-13


def test_the_upper_loss_draws_what_it_would_have_drawn_first() -> None:
    phi = torch.linspace(0.5, 2, 40, dtype=torch.float64)
    alpha = torch.ones(1, dtype=torch.float64)

    def lower(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return a[0].sum() * (dropout(p[0], 0.5) - 1).square().mean()

    def masked(mask: Tensor, p: list[Tensor], a: list[Tensor]) -> Tensor:
        return (mask * p[0]).pow(4).mean()

    def upper(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return masked(dropout(torch.ones_like(p[0]), 0.5), p, a)

    torch.manual_seed(7)
    mask = dropout(torch.ones_like(phi), 0.5)
    vector = [4 * mask**4 * phi**3 / 40]
    found = []
    for loss in (upper, lambda p, a: masked(mask, p, a)):
        torch.manual_seed(7)
        point = Point(lower, [phi], [alpha], 52, loss)
        found += indirect_gradient(resolve("f2sa"), point, vector, {"iterations": 4})
    assert found[0].abs() > 1e-3
    assert torch.equal(found[0], found[1])


def test_in_fp32_there_is_nothing_to_warn_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        lower, upper = small_network(torch.float32)
        hypergradient("f2sa", small_upper, loss_without_dropout, lower, upper)


def test_without_the_upper_loss_it_is_refused() -> None:
    one = [torch.ones(1)]
    point = Point(lambda p, a: (p[0] * a[0]).sum(), one, one, 23)
    with pytest.raises(UserError, match="f2sa needs the upper loss, which is not at hand"):
        indirect_gradient(resolve("f2sa"), point, one, {})
