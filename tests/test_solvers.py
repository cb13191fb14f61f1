"""Every method against dense float64 answers on the reference problems."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamprm.errors import UserError
from dreamprm.hypergradients import Point, hypergradient, resolve
from dreamprm.hypergradients.descent import CurvatureWarning, neumann
from dreamprm.hypergradients.products import PRODUCTS
from dreamprm.hypergradients.references import (
    VARIABLES,
    Reference,
    relative_error,
)
from dreamprm.hypergradients.solvers import cg, nystrom
from dreamprm.hypergradients.unrolled import take_steps
from dreamprm.hypergradients.vectors import norm
from tests.references import (
    EXACT,
    EYE,
    REFERENCES,
    largest_eigenvalue,
    run,
)


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


def test_a_neumann_series_that_diverges_is_named(ridge: Reference) -> None:
    """By the bound of the largest eigenvalue that its terms give; no word where it converges."""
    largest = largest_eigenvalue(ridge)
    with pytest.warns(CurvatureWarning, match="diverges with alpha=.* alpha must be less than"):
        run(ridge, "neumann", iterations=3, alpha=2.5 / largest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(ridge, "neumann", iterations=100, alpha=1.99 / largest)
    v = [torch.ones(2, dtype=torch.float64)]
    diagonal = torch.tensor([4.0, 1.0], dtype=torch.float64)
    # One term on, only the lengths of v and of (−1.4, 0.4) are known; two on, both eigenvalues.
    with pytest.warns(CurvatureWarning, match=r"at least 3: alpha must be less than 0\.6;"):
        neumann(lambda q: [diagonal * q[0]], v, iterations=1, alpha=0.6)
    with pytest.warns(CurvatureWarning, match=r"at least 4: alpha must be less than 0\.5;"):
        neumann(lambda q: [diagonal * q[0]], v, iterations=2, alpha=0.6)
    few = [torch.tensor([0.1, 1.0])]
    with pytest.warns(CurvatureWarning, match=r"at least 4: alpha must be less than 0\.5;"):
        neumann(lambda q: [diagonal.float() * q[0]], few, alpha=0.55)
    with pytest.warns(CurvatureWarning, match="has a negative eigenvalue"):
        neumann(lambda q: [-diagonal * q[0]], v, iterations=1, alpha=0.1)


@pytest.mark.parametrize("iterations", range(1, 16))
def test_a_neumann_series_whose_squares_overflow_is_named(iterations: int) -> None:
    """In float32 from the seventh term on; the terms themselves do at the thirteenth."""
    diagonal = torch.tensor([1.0, 0.3, 0.01])
    named = pytest.raises(UserError, match="not finite") if iterations > 12 else pytest.warns(
        CurvatureWarning, match="diverges with alpha=1e\\+03: the largest eigenvalue"
    )  # fmt: skip
    with named:
        neumann(lambda q: [diagonal * q[0]], [torch.ones(3)], iterations=iterations, alpha=1000.0)


def test_the_neumann_series_finds_its_own_step(reference: Reference) -> None:
    """1/λ with λ the largest eigenvalue, by five products with H from v, hence 45 terms do."""
    hessian = reference.hessian()
    v = torch.autograd.functional.jacobian(reference.meta_loss, reference.solution())
    x = v
    for _ in range(5):
        x = hessian @ (x / x.norm())
    count = 0

    def hvp(q: list[Tensor]) -> list[Tensor]:
        nonlocal count
        count += 1
        return [hessian @ q[0]]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = neumann(hvp, [v], iterations=7, alpha="auto")
    assert count == 5 + 7
    (given,) = neumann(hvp, [v], iterations=7, alpha=1 / float(x.norm()))
    assert relative_error(found, given) < 1e-12
    (damped,) = neumann(hvp, [v], iterations=2000, alpha="auto", damping=1.0)
    dense = torch.linalg.solve(hessian + torch.eye(VARIABLES, dtype=torch.float64), v)
    assert relative_error(damped, dense) < 1e-9
    assert torch.equal(neumann(hvp, [0 * v], alpha="auto")[0], 0 * v)
    with pytest.raises(UserError, match="alpha is 'fast', expected more than 0, or 'auto'"):
        neumann(hvp, [v], alpha="fast")


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


def test_conjugate_gradient_keeps_what_it_found_before_a_bad_direction() -> None:
    diagonal = torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64)
    v = [torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)]

    def hvp(q: list[Tensor]) -> list[Tensor]:
        return [diagonal * q[0]]

    with pytest.warns(CurvatureWarning, match="in iteration 2 "):
        (q,) = cg(hvp, v)
    (first,) = cg(hvp, v, iterations=1)
    assert torch.equal(q, first)
    # Its one step goes to the minimum along v.
    assert torch.allclose(q, v[0] * (v[0] @ v[0]) / (v[0] @ (diagonal * v[0])), rtol=1e-14)
    with pytest.raises(FloatingPointError, match="a product with H that is not finite"):
        cg(lambda q: [float("nan") * q[0]], v)


def test_norms_of_bf16_are_summed_in_fp32() -> None:
    values = torch.linspace(0.1, 0.3, 5000).bfloat16()
    # bf16 rounds each square to 2⁻⁹ and sums no better.
    assert norm([values, values]) == pytest.approx(2**0.5 * float(values.double().norm()), rel=1e-6)


def test_nystroms_columns_are_a_function_of_the_seed_alone() -> None:
    """Of a diagonal Hessian q shows which were drawn: 1 / (H_ii + ρ) there, 1 / ρ elsewhere."""
    count, rank, damping = 50, 5, 0.5
    diagonal = torch.linspace(1, 2, count, dtype=torch.float64)
    v = [torch.ones(count, dtype=torch.float64)]

    def drawn(seed: int) -> set[int]:
        (q,) = nystrom(lambda x: [diagonal * x[0]], v, rank=rank, damping=damping, seed=seed)
        columns = (q < 1 / (1 + damping) + 1e-9).nonzero().squeeze(1)
        assert torch.allclose(q[columns], 1 / (diagonal[columns] + damping), rtol=1e-12)
        return set(columns.tolist())

    state = random.getstate()
    found = [drawn(seed) for seed in range(8)]
    assert random.getstate() == state
    assert [drawn(seed) for seed in range(8)] == found
    assert all(len(columns) == rank for columns in found)
    assert len(set.union(*found)) > count // 3  # of 50, 29 are expected


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


@pytest.mark.parametrize("count", [1, 2, 4])
def test_truncated_unrolling_goes_through_the_last_steps(count: int) -> None:
    """Shaban et al. 2019: as if φ had stood still before them."""
    reference = REFERENCES["logistic"]
    start = [torch.full((2,), 0.3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
    alpha = [reference.alpha]
    optimizer = torch.optim.SGD(start, lr=0.5)
    phi, steps = take_steps(reference.lower, start, alpha, optimizer, start, 4)
    vector = [torch.linspace(1, 2, p.numel(), dtype=torch.float64) for p in phi]
    point = Point(reference.lower, phi, alpha, 52, steps=steps)
    (found,) = resolve("unrolled").indirect(point, vector, {"iterations": count})
    before = [p.detach() for p in steps[4 - count].lower or []]
    (whole,) = hypergradient(
        "unrolled",
        lambda p, a: (torch.cat(p) * torch.cat(vector)).sum(),
        reference.lower,
        before,
        alpha,
        optimizer=torch.optim.SGD(before, lr=0.5),
        iterations=count,
    )
    assert relative_error(found, whole) < 1e-14
    with pytest.raises(UserError, match="iterations is 5, but 4 lower steps were recorded"):
        resolve("unrolled").indirect(point, vector, {"iterations": 5})


def test_the_differences_of_all_unrolled_steps_are_counted_together() -> None:
    """Every N-th is looked at, and not the first of every step."""
    reference = REFERENCES["ridge"]
    start, alpha, memory = reference.parameters(), [reference.alpha], dict[str, Any]()
    optimizer = torch.optim.SGD(start, lr=0.5)
    phi, steps = take_steps(reference.lower, start, alpha, optimizer, start, 4)
    point = Point(reference.lower, phi, alpha, 52, steps=steps, memory=memory)
    resolve("unrolled+finite_difference").indirect(point, [torch.ones_like(p) for p in phi], {})
    assert memory["differences"] == 4 + 3  # a cross product a step, and H between steps


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
