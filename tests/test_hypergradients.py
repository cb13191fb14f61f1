"""Every method against dense float64 answers on the reference problems."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import (
    dropout,
    layer_norm,
    rms_norm,
    scaled_dot_product_attention,
    silu,
    softplus,
)

from dreamprm.errors import UserError
from dreamprm.hypergradients import (
    METHODS,
    DirectMethod,
    ImplicitMethod,
    Point,
    hypergradient,
    implicit,
    register,
    resolve,
)
from dreamprm.hypergradients.interface import OPTIMIZER, STEPS
from dreamprm.hypergradients.products import PRODUCTS, PrecisionWarning
from dreamprm.hypergradients.references import (
    VARIABLES,
    Reference,
    cosine,
    relative_error,
    weighted_logistic,
    weighted_ridge,
)
from dreamprm.hypergradients.solvers import SOLVERS, CurvatureWarning, cg, nystrom

EXACT = ("double_backward", "forward")
REFERENCES = {"ridge": weighted_ridge(direct=1.0), "logistic": weighted_logistic(direct=1.0)}
EYE = torch.eye(VARIABLES, dtype=torch.float64)


@pytest.fixture
def ridge() -> Reference:
    return REFERENCES["ridge"]


@pytest.fixture(params=REFERENCES)
def reference(request: pytest.FixtureRequest) -> Reference:
    return REFERENCES[request.param]


def largest_eigenvalue(reference: Reference) -> float:
    return float(torch.linalg.eigvalsh(reference.hessian())[-1])


def run(reference: Reference, method: str, **options: Any) -> Tensor:
    """dM/dα, with a lower optimizer for the methods that need one."""
    return call(method, reference.upper, reference.lower, reference.parameters(), **options)(
        [reference.alpha]
    )[0]


def call(
    method: str,
    upper: Callable[..., Tensor],
    lower: Callable[..., Tensor],
    params: Any,
    **options: Any,
) -> Callable[[Any], Any]:
    needs = resolve(method).needs
    if needs & {OPTIMIZER, STEPS}:
        tensors = list(params.values()) if isinstance(params, dict) else params
        options = {"optimizer": torch.optim.SGD(tensors, lr=0.1)} | options
        if STEPS in needs:
            options = {"iterations": 2} | options
    if method.startswith("nystrom"):
        options = {"rank": 3} | options
    return lambda alpha: hypergradient(method, upper, lower, params, alpha, **options)


def test_the_dense_answer_is_the_derivative_of_the_solution_map(reference: Reference) -> None:
    def upper_at_optimum(alpha: Tensor) -> Tensor:
        return reference.upper([reference.solution(alpha)], [alpha])

    step = 1e-4
    shifts = step * torch.eye(len(reference.alpha), dtype=torch.float64)
    found = torch.stack(
        [
            (upper_at_optimum(reference.alpha + s) - upper_at_optimum(reference.alpha - s))
            / (2 * step)
            for s in shifts
        ]
    )
    # Central differences: truncation of the order of step² = 1e-8, rounding 1e-16 / 1e-4.
    assert relative_error(found, reference.exact()) < 1e-7


@pytest.mark.parametrize("product", EXACT)
def test_conjugate_gradient_is_exact_after_as_many_steps_as_variables(
    reference: Reference, product: str
) -> None:
    found = run(reference, f"cg+{product}", iterations=VARIABLES)
    assert relative_error(found, reference.exact()) < 1e-12
    assert relative_error(run(reference, "cg", iterations=3), reference.exact()) > 1e-4


def test_conjugate_gradient_stops_at_its_tolerance(reference: Reference) -> None:
    hessian, count = reference.hessian(), 0

    def hvp(q: list[Tensor]) -> list[Tensor]:
        nonlocal count
        count += 1
        return [hessian @ q[0]]

    v = torch.ones(VARIABLES, dtype=torch.float64)
    for tolerance in (0.1, 1e-4):
        count = 0
        (q,) = cg(hvp, [v], iterations=100, tolerance=tolerance)
        assert (v - hessian @ q).norm() <= tolerance * v.norm() * (1 + 1e-9)
        assert count <= VARIABLES
        assert count > 1
        (with_one_less,) = cg(hvp, [v], iterations=count - 1, tolerance=tolerance)
        assert (v - hessian @ with_one_less).norm() > tolerance * v.norm()
    assert torch.equal(cg(hvp, [0 * v])[0], 0 * v)


def test_conjugate_gradient_says_that_the_curvature_is_not_positive() -> None:
    diagonal = torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64)
    v = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    with pytest.warns(CurvatureWarning, match="damping"):
        (q,) = cg(lambda q: [diagonal * q[0]], [v])
    assert q.isfinite().all()
    with pytest.warns(CurvatureWarning):
        assert torch.equal(cg(lambda q: [-q[0]], [v])[0], v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (q,) = cg(lambda q: [diagonal * q[0]], [v], damping=2.0)
    assert torch.allclose(q, v / (diagonal + 2.0), rtol=1e-12)


@pytest.mark.parametrize("product", EXACT)
def test_a_long_neumann_series_gives_the_exact_hypergradient(
    reference: Reference, product: str
) -> None:
    eigenvalues = torch.linalg.eigvalsh(reference.hessian())
    alpha = 1 / float(eigenvalues[-1])
    # The error shrinks by (1 − λ_min/λ_max) a term; enough terms for 1e-10.
    terms = int(-23 / torch.log1p(-eigenvalues[0] * alpha)) + 1
    found = run(reference, f"neumann+{product}", iterations=terms, alpha=alpha)
    assert relative_error(found, reference.exact()) < 1e-8


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("terms", [0, 1, 4])
def test_a_short_neumann_series_is_the_truncated_one(
    ridge: Reference, product: str, terms: int
) -> None:
    step = 0.2
    contraction = EYE - step * ridge.hessian()
    series = step * sum(torch.linalg.matrix_power(contraction, j) for j in range(terms + 1))
    found = run(ridge, f"neumann+{product}", iterations=terms, alpha=step)
    # L is quadratic in φ, so central differences are exact too, up to rounding over the step 5e-6.
    assert relative_error(found, ridge.dense(series)) < (1e-12 if product in EXACT else 1e-8)


def test_nystrom_of_full_rank_is_exact_but_for_its_damping(reference: Reference) -> None:
    for damping in (1e-2, 1e-8):
        found = run(reference, "nystrom", rank=VARIABLES, damping=damping)
        inverse = torch.linalg.inv(reference.hessian() + damping * EYE)
        assert relative_error(found, reference.dense(inverse)) < 1e-8
    assert relative_error(found, reference.exact()) < 1e-6


@pytest.mark.parametrize("signs", [(1, 1, 1, 1, 1), (1, -1, 1, -1, 1)])
def test_nystrom_of_the_hessians_rank_is_exact_but_for_its_damping(signs: tuple[int]) -> None:
    """As in the paper: columns that span the range of H lose nothing, whatever the signs."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    hessian = factors @ torch.diag(torch.tensor(signs, dtype=torch.float64)) @ factors.T
    v = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (30, 10)]

    def hvp(q: list[Tensor]) -> list[Tensor]:
        return list((hessian @ torch.cat(q)).split([30, 10]))

    found = torch.cat(nystrom(hvp, v, rank=5, damping=0.5, seed=3))
    eye = torch.eye(40, dtype=torch.float64)
    # Rounding, times the condition numbers of the block that is inverted and of H + ρI.
    assert relative_error(found, torch.linalg.solve(hessian + 0.5 * eye, torch.cat(v))) < 1e-9
    low = torch.cat(nystrom(hvp, v, rank=2, damping=0.5, seed=3))
    assert relative_error(low, torch.linalg.solve(hessian + 0.5 * eye, torch.cat(v))) > 1e-2


@pytest.mark.parametrize("method", ["neumann", "cg"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_damping_adds_to_the_diagonal(reference: Reference, method: str, product: str) -> None:
    damping = 0.7
    inverse = torch.linalg.inv(reference.hessian() + damping * EYE)
    options: dict[str, Any] = {"damping": damping, "iterations": 6}
    if method == "neumann":
        alpha = 1 / (largest_eigenvalue(reference) + damping)
        options |= {"alpha": alpha, "iterations": 150}
    found = run(reference, f"{method}+{product}", **options)
    # Differences of the logistic loss: truncation 1e-11, rounding 1e-16 / 5e-6, many products.
    tolerance = 1e-10 if product in EXACT else 1e-7
    assert relative_error(found, reference.dense(inverse)) < tolerance


@pytest.mark.parametrize("method", ["identity", "t1t2", "darts", "identity+double_backward"])
def test_the_identity_solver_takes_the_hessian_for_the_identity(
    reference: Reference, method: str
) -> None:
    exact = method in ("t1t2", "identity+double_backward")
    assert relative_error(run(reference, method), reference.dense(EYE)) < (1e-12 if exact else 1e-8)


@pytest.mark.parametrize("product", PRODUCTS)
def test_sama_is_preconditioned_by_adams_update_jacobian(
    reference: Reference, product: str
) -> None:
    params = reference.parameters()
    optimizer = torch.optim.Adam(params, lr=0.05, betas=(0.8, 0.9), eps=1e-3)
    generator = torch.Generator().manual_seed(1)
    gradients = []
    for _ in range(3):
        gradients.append(torch.randn(VARIABLES, generator=generator, dtype=torch.float64))
        for p, g in zip(params, gradients[-1].split([2, VARIABLES - 2]), strict=True):
            p.grad = g
        optimizer.step()
    (found,) = hypergradient(
        f"sama+{product}",
        reference.upper,
        reference.lower,
        params,
        [reference.alpha],
        optimizer=optimizer,
    )
    # Written out here once more: the fourth step, in full, for the gradient at this φ.
    phi = torch.cat(params)
    g = torch.autograd.functional.jacobian(lambda p: reference.lower([p], [reference.alpha]), phi)
    m = sum(0.2 * 0.8 ** (3 - i) * x for i, x in enumerate([*gradients, g]))
    s = sum(0.1 * 0.9 ** (3 - i) * x**2 for i, x in enumerate([*gradients, g]))
    c1, c2 = 1 - 0.8**4, 1 - 0.9**4
    root = (s / c2).sqrt()
    d = 0.05 * (0.2 / c1 / (root + 1e-3) - m / c1 / (root + 1e-3) ** 2 * 0.1 * g / c2 / root)
    jacobian = torch.autograd.functional.jacobian
    v = jacobian(reference.meta_loss, phi)
    cross = torch.autograd.functional.hessian(
        lambda p, a: reference.lower([p], [a]), (phi, reference.alpha)
    )[0][1]
    expected = reference.alpha - cross.T @ (d * v)
    assert relative_error(found, expected) < (1e-12 if product in EXACT else 1e-8)


def test_sama_after_plain_gradient_descent_is_the_learning_rate_times_identity(
    ridge: Reference,
) -> None:
    assert relative_error(run(ridge, "sama+forward"), ridge.dense(0.1 * EYE)) < 1e-12


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("build", ["sgd", "momentum", "adamw"])
def test_unrolling_is_the_derivative_of_the_steps(build: str, product: str) -> None:
    """Held against autograd through the steps, written out here with a graph."""
    reference = REFERENCES["logistic"]
    start = [torch.full((2,), 0.3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD(start, lr=0.5, weight_decay=0.1),
        "momentum": lambda: torch.optim.SGD(start, lr=0.5, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(start, lr=0.2, eps=1e-2, weight_decay=0.1),
    }[build]()
    (found,) = hypergradient(
        f"unrolled+{product}",
        reference.upper,
        reference.lower,
        start,
        [reference.alpha],
        optimizer=optimizer,
        iterations=5,
    )
    alpha = reference.alpha.clone().requires_grad_()
    phi = torch.cat(start).requires_grad_()
    momentum = squares = torch.zeros(VARIABLES, dtype=torch.float64)
    for t in range(1, 6):
        (g,) = torch.autograd.grad(reference.lower([phi], [alpha]), phi, create_graph=True)
        if build == "adamw":
            momentum, squares = 0.9 * momentum + 0.1 * g, 0.999 * squares + 0.001 * g**2
            root = (squares / (1 - 0.999**t)).sqrt() + 1e-2
            phi = phi * (1 - 0.2 * 0.1) - 0.2 * momentum / (1 - 0.9**t) / root
        elif build == "momentum":
            momentum = 0.9 * momentum + g
            phi = phi - 0.5 * momentum
        else:
            phi = phi - 0.5 * (g + 0.1 * phi)
    reference.upper([phi], [alpha]).backward()
    assert relative_error(found, alpha.grad) < (1e-12 if product in EXACT else 1e-7)


def test_unrolling_at_the_optimum_is_a_neumann_series(reference: Reference) -> None:
    """T steps of gradient descent at φ*: α Σ_{j<T} (I − αH)^j, i.e. K = T − 1."""
    step = 1 / largest_eigenvalue(reference)
    optimizer = torch.optim.SGD(params := reference.parameters(), lr=step)
    (found,) = hypergradient(
        "unrolled",
        reference.upper,
        reference.lower,
        params,
        [reference.alpha],
        optimizer=optimizer,
        iterations=4,
    )
    expected = run(reference, "neumann+double_backward", iterations=3, alpha=step)
    assert relative_error(found, expected) < 1e-10


def test_the_penalty_method_is_off_by_one_over_its_penalty(reference: Reference) -> None:
    step = 1 / largest_eigenvalue(reference)
    errors = [
        relative_error(
            run(reference, "f2sa", iterations=400, alpha=step / (1 + 1 / p), penalty=p),
            reference.exact(),
        )
        for p in (1e3, 1e4)
    ]
    assert errors[0] < 1e-2
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


def test_the_first_penalty_step_is_the_identity_solver(ridge: Reference) -> None:
    """y − z = −(α/λ)v after one step at φ*: α times the identity answer, by differences."""
    indirect = ridge.dense(EYE) - ridge.alpha
    found = run(ridge, "f2sa", iterations=1, alpha=0.1, penalty=1e4) - ridge.alpha
    assert relative_error(found, 0.1 * indirect) < 1e-3


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


def small_network_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    """Two domains of three inputs each through a layer with dropout and causal attention."""
    x = torch.linspace(-1, 1, 48, dtype=lower[0].dtype).reshape(6, 2, 4)
    hidden = dropout(torch.tanh(x @ lower[0]), 0.5)
    # A head is four numbers wide.
    mixed = scaled_dot_product_attention(hidden[:, None], hidden[:, None], hidden[:, None])
    losses = (mixed[:, 0] @ lower[1]).square().mean((1, 2))
    return (softplus(upper[0])[torch.tensor([0, 0, 0, 1, 1, 1])] * losses).mean()


def small_network(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    lower = [torch.randn(4, 4, generator=generator), torch.randn(4, 3, generator=generator)]
    return [t.to(dtype) for t in lower], [torch.zeros(2, dtype=dtype)]


def small_upper(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    return sum(p.square().sum() for p in lower)  # type: ignore[return-value]


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


def loss_without_dropout(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    x = torch.linspace(-1, 1, 32).reshape(8, 4)
    losses = (torch.tanh(x @ lower[0]) @ lower[1]).float().square().mean(1)
    return (softplus(upper[0])[torch.tensor([0, 1] * 4)] * losses).mean()


def in_bf16(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def autocast(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(lower, upper)

    return autocast


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_differences_default_step_goes_with_the_precision(dtype: torch.dtype) -> None:
    """A step thirty times longer truncates more, one thirty times shorter rounds more."""
    error: dict[float, list[float]] = {1 / 30: [], 1.0: [], 30.0: []}
    for seed in range(20):
        upper, lower, phi, alpha = small_problem(seed, 4, 3)
        exact = torch.cat([g.reshape(-1) for g in hypergradient("t1t2", upper, lower, phi, alpha)])
        phi, alpha = ([t.to(dtype) for t in ts] for ts in (phi, alpha))
        upper, lower, _, _ = small_problem(seed, 4, 3, dtype)
        default = 2 ** (-24 / 3) if dtype == torch.float32 else 2 ** (-53 / 3)
        for factor in error:
            found = hypergradient("darts", upper, lower, phi, alpha, epsilon=factor * default)
            if factor == 1.0:
                unsaid = hypergradient("darts", upper, lower, phi, alpha)
                assert all(torch.equal(a, b) for a, b in zip(found, unsaid, strict=True))
            flat = torch.cat([g.reshape(-1) for g in found])
            error[factor].append(relative_error(flat, exact))
    median = {factor: sorted(errors)[10] for factor, errors in error.items()}
    assert median[1.0] < median[30.0]
    assert median[1.0] < median[1 / 30]
    assert median[1.0] < (1e-3 if dtype == torch.float32 else 1e-8)


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


@pytest.mark.parametrize(
    ("solver", "dtype", "autocast", "expected"),
    [
        ("identity", torch.float32, False, "finite difference"),
        ("identity", torch.float32, True, "forward mode"),
        ("identity", torch.bfloat16, False, "forward mode"),
        ("sama", torch.float64, False, "finite difference"),
        ("sama", torch.float32, True, "forward mode"),
        ("cg", torch.float32, True, "double backward"),
        ("neumann", torch.float32, False, "double backward"),
    ],
)
def test_the_right_product_for_the_precision_is_chosen_and_logged(
    solver: str,
    dtype: torch.dtype,
    autocast: bool,
    expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lower, upper = small_network(dtype)

    def upper_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        return sum((p @ p.T).float().square().sum() for p in lower)  # type: ignore[return-value]

    def lower_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        x = torch.linspace(-1, 1, 32).reshape(8, 4).to(dtype)
        losses = (torch.tanh(x @ lower[0]) @ lower[1]).float().square().mean(1)
        return (softplus(upper[0])[torch.tensor([0, 1] * 4)] * losses).mean()

    implicit._announce.cache_clear()
    caplog.set_level(logging.INFO, "dreamprm")
    options: dict[str, Any] = {"cg": {"damping": 30.0}}.get(solver, {})
    losses = (in_bf16(upper_loss), in_bf16(lower_loss)) if autocast else (upper_loss, lower_loss)
    for _ in range(2):
        (found,) = call(solver, *losses, lower, **options)(upper)
    assert caplog.text.count(f"{solver}: products by {expected}") == 1
    named = f"{solver}+{expected.removesuffix(' mode').replace(' ', '_')}"
    assert torch.equal(found, call(named, *losses, lower, **options)(upper)[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_vector_of_zeros_gives_zeros(ridge: Reference, name: str) -> None:
    params = ridge.parameters()
    only_direct = call(name, lambda p, a: a[0].square().sum() / 2, ridge.lower, params)
    assert torch.equal(only_direct([ridge.alpha])[0], ridge.alpha)


@pytest.mark.parametrize(
    "name", [*METHODS, *(f"{s}+{p}" for s in ("identity", "neumann", "unrolled") for p in PRODUCTS)]
)
def test_a_lower_loss_without_alpha_is_refused(ridge: Reference, name: str) -> None:
    independent = call(name, ridge.upper, lambda p, a: p[0].square().sum(), ridge.parameters())
    with pytest.raises(UserError, match="does not depend on the upper parameters"):
        independent([ridge.alpha])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("neuman", {}, "did you mean 'neumann'"),
        ("identity+foward", {}, r"did you mean 'identity\+forward'"),
        ("cg+darts", {}, r"known are .*nystrom.*also with \+double_backward"),
        ("darts", {"eps": 0.1}, "unknown option of hypergradient method 'darts' 'eps'"),
        ("t1t2", {"iterations": 3}, "has no options"),
        ("sama", {"preconditioner": None}, "has no options, found 'preconditioner'"),
        ("darts", {"bits": 3}, "unknown option of hypergradient method 'darts' 'bits'"),
        ("darts", {"epsilon": 0.0}, "epsilon is 0.0, expected more than 0"),
        ("darts", {"epsilon": float("inf")}, "epsilon is inf, expected more than 0"),
        ("neumann", {"iterations": -1}, "iterations is -1, expected a whole number of at least 0"),
        ("neumann", {"iterations": 1.5}, "iterations is 1.5"),
        ("neumann", {"alpha": -0.1}, "alpha is -0.1"),
        ("neumann", {"damping": -1}, "damping is -1, expected at least 0"),
        ("cg", {"iterations": 0}, "iterations is 0, expected a whole number of at least 1"),
        ("cg", {"tolerance": -1e-3}, "tolerance is -0.001, expected at least 0"),
        ("cg", {"damping": "1"}, "damping is '1', expected at least 0"),
        ("nystrom", {"rank": 0}, "rank is 0"),
        ("nystrom", {"rank": 2, "damping": 0.0}, "damping is 0.0, expected more than 0"),
        ("nystrom", {"rank": 2, "seed": -1}, "seed is -1"),
        ("unrolled", {"iterations": 0}, "iterations is 0"),
        ("unrolled+finite_difference", {"iterations": 1, "epsilon": -1}, "epsilon is -1"),
        ("f2sa", {"iterations": 0}, "iterations is 0"),
        ("f2sa", {"alpha": 0}, "alpha is 0, expected more than 0"),
        ("f2sa", {"penalty": -2.0}, "penalty is -2.0, expected more than 0"),
        ("f2sa", {"rank": 2}, "unknown option of hypergradient method 'f2sa' 'rank'"),
    ],
)
def test_wrong_names_and_options_are_named(
    ridge: Reference, method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve(method).check(options)
    with pytest.raises(UserError, match=message):
        hypergradient(
            method, ridge.upper, ridge.lower, ridge.parameters(), [ridge.alpha], **options
        )


def test_what_can_only_be_known_at_the_point_is_refused_there(ridge: Reference) -> None:
    with pytest.raises(UserError, match="rank is 7, expected at most the 6 variables"):
        run(ridge, "nystrom", rank=7)
    args = (ridge.upper, ridge.lower, ridge.parameters(), [ridge.alpha])
    with pytest.raises(UserError, match="'sama' needs the lower optimizer: pass optimizer="):
        hypergradient("sama", *args)
    optimizer = torch.optim.SGD(args[2], lr=0.1)
    with pytest.raises(UserError, match="'unrolled' needs iterations"):
        hypergradient("unrolled", *args, optimizer=optimizer)
    with pytest.raises(UserError, match="'t1t2' takes no optimizer"):
        hypergradient("t1t2", *args, optimizer=optimizer)
    with pytest.raises(UserError, match=r"alpha=5.0: alpha must be less than 2 over the largest"):
        run(ridge, "neumann", iterations=500, alpha=5.0)
    with pytest.raises(UserError, match=r"alpha=5.0: alpha must be less than 2 over the largest"):
        run(ridge, "f2sa", iterations=500, alpha=5.0)


def test_losses_must_be_finite_scalars(ridge: Reference) -> None:
    args = (ridge.parameters(), [ridge.alpha])
    with pytest.raises(UserError, match=r"upper loss has shape \(3,\)"):
        hypergradient("t1t2", lambda p, a: a[0] * p[0].sum(), ridge.lower, *args)
    with pytest.raises(UserError, match=r"lower loss has shape \(3,\)"):
        hypergradient("t1t2", ridge.upper, lambda p, a: a[0] * p[0].sum(), *args)
    with pytest.raises(UserError, match="'t1t2' got a v that is not finite"):
        hypergradient("t1t2", lambda p, a: p[0].sum() * float("nan"), ridge.lower, *args)
    infinite = float("inf")
    with pytest.raises(FloatingPointError, match=r"hypergradient of method 'cg'.*is not finite"):
        hypergradient("cg", ridge.upper, lambda p, a: (a[0] * infinite).sum() * p[0].sum(), *args)


def halved(hvp: Any, v: list[Tensor], *, factor: float = 0.5) -> list[Tensor]:
    """q = factor · v."""
    return [factor * x for x in v]


def flat(point: Point, vector: list[Tensor], *, slope: float = 1.0) -> list[Tensor]:
    """A method that is no solver with a product: the sum of v, everywhere."""
    return [slope * sum(v.sum() for v in vector).expand(a.shape) for a in point.upper]


def test_a_third_party_registers_methods(ridge: Reference) -> None:
    register(ImplicitMethod("halved", halved, PRODUCTS["forward"], "me, today"))
    register(DirectMethod("flat", flat, "me, today"))
    try:
        assert relative_error(run(ridge, "halved", factor=2.0), ridge.dense(2 * EYE)) < 1e-12
        found = run(ridge, "flat", slope=2.0) - ridge.alpha
        assert torch.equal(found, 2 * (run(ridge, "flat") - ridge.alpha))
        with pytest.raises(UserError, match="option of hypergradient method 'halved' 'fator'"):
            run(ridge, "halved", fator=2.0)
        with pytest.raises(UserError, match="option of hypergradient method 'flat' 'slop'"):
            resolve("flat").check({"slop": 1.0})
        with pytest.raises(UserError, match="already"):
            register(METHODS["halved"])
        with pytest.raises(UserError, match=r"known are .*halved"):
            resolve("no such method")
    finally:
        del METHODS["halved"], METHODS["flat"]


def test_parameters_must_be_lists_or_dicts_of_real_tensors(ridge: Reference) -> None:
    phi, alpha = ridge.parameters(), [ridge.alpha]
    for wrong, message in (
        (phi[0], "lower_params is one Tensor"),
        ([], r"lower_params is \[\]"),
        ([phi[0], torch.zeros(4, dtype=torch.long)], r"lower_params holds a torch\.int64"),
        ([phi[0], torch.zeros(4, dtype=torch.complex64)], r"holds a torch\.complex64"),
        ([phi[0], 1.0], "lower_params holds a float"),
    ):
        with pytest.raises(UserError, match=message):
            hypergradient("t1t2", ridge.upper, ridge.lower, wrong, alpha)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="upper_params is one Tensor"):
        hypergradient("t1t2", ridge.upper, ridge.lower, phi, ridge.alpha)
    with pytest.raises(UserError, match="depends on neither"):
        hypergradient("t1t2", lambda p, a: torch.ones(()), ridge.lower, phi, alpha)
    with torch.no_grad():
        assert relative_error(ridge.run("cg"), ridge.exact()) < 1e-12


def test_what_has_no_forward_mode_is_named(ridge: Reference) -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    def lower(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return ridge.lower([Opaque.apply(x) for x in p], a)

    with pytest.raises(UserError, match=r"forward mode does not work .*solver\+double_backward"):
        hypergradient("t1t2", ridge.upper, lower, ridge.parameters(), [ridge.alpha])
    assert hypergradient("darts", ridge.upper, lower, ridge.parameters(), [ridge.alpha])


def test_the_penalty_method_warns_below_fp32() -> None:
    lower, upper = small_network(torch.float32)
    losses = small_upper, in_bf16(loss_without_dropout)
    with pytest.warns(PrecisionWarning, match="f2sa"):
        hypergradient("f2sa", in_bf16(lambda p, a: (p[0] @ p[0].T).sum()), losses[1], lower, upper)


def test_what_a_third_party_gets_wrong_is_named_after_it(ridge: Reference) -> None:
    register(ImplicitMethod("short", lambda hvp, v: v[:1], PRODUCTS["forward"]))
    register(DirectMethod("long", lambda point, v: [torch.zeros(30)]))
    try:
        with pytest.raises(
            UserError, match=r"solver of hypergradient method 'short' gave .*\(2,\)"
        ):
            run(ridge, "short")
        with pytest.raises(UserError, match=r"method 'long' gave tensors of shapes \[\(30,\)\]"):
            run(ridge, "long")
        with pytest.raises(UserError, match="'long' takes no other product"):
            resolve("long+forward")
    finally:
        del METHODS["short"], METHODS["long"]
    with pytest.raises(UserError, match="stands between solver and product"):
        register(DirectMethod("a+b", flat))
    for name in ("f2sa+forward", "darts+forward"):
        with pytest.raises(UserError, match="takes no other product"):
            resolve(name)


def test_what_is_registered_takes_other_products(ridge: Reference) -> None:
    register(ImplicitMethod("halved", halved, PRODUCTS["forward"]))
    try:
        expected = ridge.dense(0.5 * EYE)
        for product in EXACT:
            assert relative_error(run(ridge, f"halved+{product}"), expected) < 1e-12
    finally:
        del METHODS["halved"]
