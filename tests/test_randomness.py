"""Random numbers are held over the evaluations of a loss; generators end where they must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreamprm.hypergradients import hypergradient
from dreamprm.hypergradients.randomness import RandomState, past_randomness, same_randomness
from tests.references import small_network, small_network_loss, small_upper


def test_the_same_numbers_at_every_call_and_the_generator_moves_once() -> None:
    torch.manual_seed(3)
    expected, then = torch.rand(4), torch.rand(1)
    torch.manual_seed(3)
    draw = same_randomness(torch.rand, [])
    assert all(torch.equal(draw(4), expected) for _ in range(3))
    assert torch.equal(torch.rand(1), then)


def test_past_numbers_do_not_move_the_generator() -> None:
    torch.manual_seed(3)
    state = RandomState.now([])
    expected = torch.rand(4)
    draw = past_randomness(torch.rand, state, [])
    torch.manual_seed(5)
    then = torch.rand(1)
    torch.manual_seed(5)
    assert all(torch.equal(draw(4), expected) for _ in range(3))
    assert torch.equal(torch.rand(1), then)


def test_past_numbers_do_not_move_the_generator_where_the_function_fails() -> None:
    def failing() -> None:
        torch.rand(4)
        raise ArithmeticError

    draw = past_randomness(failing, RandomState.now([]), [])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        draw()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("product", ["double_backward", "forward", "finite_difference"])
def test_unrolling_moves_the_generator_by_its_steps_alone(product: str) -> None:
    lower, upper = small_network(torch.float64)
    torch.manual_seed(7)
    for _ in range(3):
        small_network_loss(lower, upper)
    expected = torch.get_rng_state()
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(lower, lr=0.1)
    hypergradient(
        f"unrolled+{product}",
        small_upper,
        small_network_loss,
        lower,
        upper,
        optimizer=optimizer,
        iterations=3,
    )
    assert torch.equal(torch.get_rng_state(), expected)


def test_every_unrolled_step_is_differentiated_under_its_own_mask() -> None:
    """Held against autograd through the steps, whose masks differ."""
    lower, upper = small_network(torch.float64)
    torch.manual_seed(7)
    alpha = upper[0].clone().requires_grad_()
    phi: list[Tensor] = [p.clone().requires_grad_() for p in lower]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for _ in range(3):
            loss = small_network_loss(phi, [alpha])
            grads = torch.autograd.grad(loss, phi, create_graph=True)
            phi = [p - 0.1 * g for p, g in zip(phi, grads, strict=True)]
        (expected,) = torch.autograd.grad(small_upper(phi, [alpha]), alpha)
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(lower, lr=0.1)
    (found,) = hypergradient(
        "unrolled",
        small_upper,
        small_network_loss,
        lower,
        upper,
        optimizer=optimizer,
        iterations=3,
    )
    assert (found - expected).norm() < 1e-12 * expected.norm()
