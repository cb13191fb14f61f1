"""The products against each other and exact derivatives, with dropout and in bf16."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import (
    layer_norm,
    rms_norm,
    silu,
    softplus,
)

from dreamprm.hypergradients import (
    METHODS,
    hypergradient,
)
from dreamprm.hypergradients.products import (
    PRODUCTS,
    PrecisionWarning,
    lower_gradient,
    upper_gradient,
)
from dreamprm.hypergradients.references import (
    Reference,
    cosine,
    relative_error,
)
from dreamprm.hypergradients.solvers import SOLVERS, CurvatureWarning
from tests.references import (
    EXACT,
    call,
    in_bf16,
    loss_without_dropout,
    run,
    small_network,
    small_network_loss,
    small_upper,
)


def small_problem(
    seed: int, width: int, domains: int, dtype: torch.dtype = torch.float64
) -> tuple[Any, Any, list[Tensor], list[Tensor]]:
    """A random two-layer network on random data, domains weighted, a direct term in M."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, y, x_meta = draw(domains, 5, 3), draw(domains, 5), draw(4, 3)

    def network(x: Tensor, phi: list[Tensor]) -> Tensor:
        return torch.tanh(x @ phi[0]) @ phi[1]

    def lower(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        losses = (network(x, phi) - y).square().mean(-1)
        decay = sum(p.square().sum() for p in phi)
        return (softplus(alpha[0]) * losses).mean() + alpha[1].exp() * decay

    def upper(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        return network(x_meta, phi).square().mean() + alpha[1].square().sum()

    return upper, lower, [draw(3, width), draw(width)], [draw(domains), draw()]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([*SOLVERS, "unrolled"]),
)
def test_all_exact_pairs_agree(seed: int, width: int, domains: int, solver: str) -> None:
    upper, lower, phi, alpha = small_problem(seed, width, domains)
    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        for product in EXACT:
            options = {"iterations": 2} if solver == "cg" else {}
            answers.append(call(f"{solver}+{product}", upper, lower, phi, **options)(alpha))
    for one, other in zip(*answers, strict=True):
        # Rounding, times the condition of a few products (of Nyström's block, which may be bad).
        scale = max(float(one.norm()), 1e-3)
        assert float((one - other).norm()) < (1e-9 if solver != "nystrom" else 1e-5) * scale


@pytest.mark.parametrize("solver", ["identity", "neumann"])
def test_exact_products_agree_through_norms_softmax_and_silu(solver: str) -> None:
    """With α inside a network that weights by the losses: the order of derivatives matters there.

    In torch 2.13 the gradient of a tangent is wrong through norms and impossible through softmax.
    """
    generator = torch.Generator().manual_seed(2)
    x, hidden, out, first, second = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((6, 5), (5, 8), (8,), (6, 6), (6, 6))
    )

    def lower(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        losses = (rms_norm(silu(x @ phi[0]), (8,)) @ phi[1]).square()
        weights = layer_norm(silu(losses @ alpha[0]), (6,)) @ alpha[1]
        return (weights.softmax(0) * losses).sum()

    def upper(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        return (silu(x @ phi[0]) @ phi[1]).mean()

    expected, found = (
        hypergradient(f"{solver}+{product}", upper, lower, [hidden, out], [first, second])
        for product in EXACT
    )
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-11


@pytest.mark.parametrize(
    "name",
    [*METHODS, *(f"{s}+{p}" for s in (*SOLVERS, "unrolled") for p in PRODUCTS)],
)
def test_structures_are_kept_and_tensors_left_alone(ridge: Reference, name: str) -> None:
    params = ridge.parameters()
    phi = {"a": params[0].clone(), "b": nn.Parameter(params[1].clone())}
    alpha = {"alpha": ridge.alpha.clone()}
    before = {name: tensor.detach().clone() for name, tensor in phi.items()}
    found = call(
        name,
        lambda lower, upper: ridge.upper([lower["a"], lower["b"]], [upper["alpha"]]),
        lambda lower, upper: ridge.lower([lower["a"], lower["b"]], [upper["alpha"]]),
        phi,
    )(alpha)
    assert torch.equal(found["alpha"], run(ridge, name))
    assert all(torch.equal(phi[name], before[name]) for name in phi)
    assert not phi["a"].requires_grad
    assert phi["b"].grad is None


@pytest.mark.parametrize("product", ["forward", "finite_difference"])
@pytest.mark.parametrize("solver", [*SOLVERS, "unrolled"])
def test_one_dropout_mask_serves_all_evaluations(solver: str, product: str) -> None:
    lower, upper = small_network(torch.float64)
    options = {"cg": {"damping": 30.0}, "neumann": {"alpha": 0.01}}.get(solver, {})
    answers = []
    for name in ("double_backward", product):
        torch.manual_seed(7)
        answers += call(f"{solver}+{name}", small_upper, small_network_loss, lower, **options)(
            upper
        )
    # Another mask changes the answer by its own size; the differences' own error is O(ε²).
    tolerance = 1e-10 if product == "forward" else 1e-5
    assert relative_error(answers[1], answers[0]) < tolerance


def test_the_penalty_methods_two_sequences_see_one_dropout_mask() -> None:
    """With two masks the difference of gradients, times the penalty, would be mostly noise."""
    lower, upper = small_network(torch.float64)
    torch.manual_seed(7)
    (exact,) = hypergradient(
        "identity+double_backward", small_upper, small_network_loss, lower, upper
    )
    torch.manual_seed(7)
    options = {"iterations": 1, "alpha": 1e-3, "penalty": 1e3}
    (found,) = hypergradient("f2sa", small_upper, small_network_loss, lower, upper, **options)
    assert cosine(found, exact) > 0.99


@pytest.mark.parametrize("name", [m for m in METHODS if m != "unrolled"])
def test_the_random_state_moves_on_by_one_evaluation(name: str) -> None:
    lower, upper = small_network(torch.float64)
    torch.manual_seed(7)
    small_network_loss(lower, upper)
    after_one = torch.get_rng_state()
    torch.manual_seed(7)
    options = {"cg": {"damping": 30.0}}.get(name, {})
    call(name, small_upper, small_network_loss, lower, **options)(upper)
    assert torch.equal(torch.get_rng_state(), after_one)


def test_under_bf16_autocast_forward_mode_is_the_closer_one() -> None:
    # The differences' step of 0.01 / ‖v‖ is below the spacing of bf16 numbers near 1 (2⁻⁸).
    lower, upper = small_network(torch.float32)
    exact = hypergradient("t1t2", small_upper, loss_without_dropout, lower, upper)[0]
    bf16 = in_bf16(loss_without_dropout)
    error = {
        "t1t2": relative_error(hypergradient("t1t2", small_upper, bf16, lower, upper)[0], exact)
    }
    with pytest.warns(PrecisionWarning, match="forward mode is not"):
        found = hypergradient("darts", small_upper, bf16, lower, upper, epsilon=0.01)[0]
    assert error["t1t2"] < 0.05
    assert relative_error(found, exact) > 4 * error["t1t2"]


def test_gradients_leave_what_they_are_given() -> None:
    """And give zeros for the α that the loss does not depend on, where it does on another."""
    phi, alpha = [torch.ones(2)], [torch.ones(1), torch.ones(3)]

    def loss(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return (a[0] * p[0]).sum()

    assert torch.equal(lower_gradient(loss, phi, alpha)[0], torch.ones(2))
    found = upper_gradient(loss, phi, alpha)
    assert torch.equal(found[0], torch.full((1,), 2.0))
    assert torch.equal(found[1], torch.zeros(3))
    assert not any(t.requires_grad for t in (*phi, *alpha))


def test_looking_at_a_second_step_changes_no_difference() -> None:
    upper, lower, phi, alpha = small_problem(0, 3, 2)
    found = [hypergradient("darts", upper, lower, phi, alpha, check_every=n) for n in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("product", EXACT)
def test_where_a_gradient_is_constant_its_derivatives_are_zero(product: str) -> None:
    """torch then gives no graph or no tangent for it."""
    phi = [torch.tensor([0.5, 2.0]), torch.tensor([3.0])]
    alpha = [torch.tensor([2.0])]

    def upper(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return p[0].sum() + p[1].sum()

    def linear_in_one(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return (a[0] * p[0].square()).sum() + 4 * p[1].sum()

    def apart(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return 4 * p[0].sum() + p[1].sum() + a[0].square().sum()

    (found,) = hypergradient(f"identity+{product}", upper, linear_in_one, phi, alpha)
    assert torch.equal(found, -2 * phi[0].sum().reshape(1))
    (found,) = hypergradient(f"neumann+{product}", upper, apart, phi, alpha, iterations=1)
    assert torch.equal(found, torch.zeros(1))


@pytest.mark.parametrize("product", PRODUCTS)
def test_away_from_the_optimum_every_method_is_what_it_says(product: str) -> None:
    """At a φ where ∇_φ L is large, α in the middle of the network, against dense matrices."""
    upper, lower, phi, alpha = small_problem(3, 3, 2)
    sizes = [[t.numel() for t in ts] for ts in (phi, alpha)]
    start, at = (torch.cat([t.reshape(-1) for t in ts]) for ts in (phi, alpha))

    def whole(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def flat(p: Tensor, a: Tensor) -> Tensor:
            pieces = zip((p, a), sizes, (phi, alpha), strict=True)
            return loss(
                *(
                    [x.reshape(t.shape) for x, t in zip(f.split(n), ts, strict=True)]
                    for f, n, ts in pieces
                )
            )

        return flat

    derivatives = torch.autograd.functional
    direct_phi, direct = derivatives.jacobian(whole(upper), (start, at))
    (h, cross), _ = derivatives.hessian(whole(lower), (start, at))
    (gradient, _) = derivatives.jacobian(whole(lower), (start, at))
    assert gradient.norm() > 1
    eye = torch.eye(len(start), dtype=torch.float64)
    shrink = eye - 0.05 * (h + 0.2 * eye)
    damped = torch.linalg.inv(h + 9 * eye)
    cases: dict[str, tuple[dict[str, Any], Tensor]] = {
        "identity": ({}, eye),
        "neumann": (
            {"iterations": 3, "alpha": 0.05, "damping": 0.2},
            0.05 * sum(torch.linalg.matrix_power(shrink, j) for j in range(4)),
        ),
        "cg": ({"iterations": 60, "damping": 9.0}, damped),
        "nystrom": ({"rank": len(start), "damping": 9.0}, damped),
        "sama": ({}, 0.1 * eye),  # plain gradient descent at 0.1
    }
    for solver, (options, inverse) in cases.items():
        expected = direct - cross.T @ inverse @ direct_phi
        parts = call(f"{solver}+{product}", upper, lower, phi, **options)(alpha)
        found = torch.cat([g.reshape(-1) for g in parts])
        # Differences: their step is 5e-6 and their truncation its square, a few products long.
        assert relative_error(found, expected) < (1e-11 if product in EXACT else 1e-7), solver
