"""Methods whose q goes on from step to step, held against quadratics at a point that is held."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.quadratics import (
    Quadratic,
    quadratic,
)
from dreamprm.errors import UserError
from dreamprm.hypergradients import METHODS, ImplicitMethod, Point, hypergradient, register, resolve
from dreamprm.hypergradients.catalogue import describe
from dreamprm.hypergradients.descent import CurvatureWarning, neumann, soba
from dreamprm.hypergradients.references import Reference, relative_error
from dreamprm.hypergradients.solvers import cg
from dreamprm.problems.config import ProblemConfig
from tests.references import run

EYE = torch.eye(8, dtype=torch.float64)
WITH_MEMORY: list[tuple[str, dict[str, Any]]] = [
    ("soba", {"alpha": 0.1}),
    ("neumann", {"alpha": 0.1, "iterations": 1, "warm_start": True}),
    ("cg", {"iterations": 1, "warm_start": True}),
]


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class At:
    """A quadratic at a point, and hypergradients there that share a memory."""

    def __init__(self, problem: Quadratic) -> None:
        self.problem, self.alpha = problem, draw(len(problem.d))
        self.phi = problem.solution(self.alpha)
        self.v = problem.vector(self.phi)
        self.inverse = torch.linalg.inv(problem.a)
        self.exact = problem.hypergradient(self.phi, self.alpha)
        self.memory: dict[str, Any] = {}

    def run(self, method: str, memory: dict[str, Any] | None = None, **options: Any) -> Tensor:
        (found,) = hypergradient(
            method,
            self.problem.upper,
            self.problem.lower,
            [self.phi[:3], self.phi[3:]],
            [self.alpha],
            memory=self.memory if memory is None else memory,
            **options,
        )
        return found

    def repeat(self, times: int, *given: Any, **options: Any) -> None:
        for _ in range(times):
            self.run(*given, **options)

    @property
    def q(self) -> Tensor:
        return torch.cat(self.memory["q"])


@pytest.fixture
def at() -> At:
    return At(quadratic())


@pytest.mark.parametrize("product", ["double_backward", "forward"])
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_sobas_q_converges_by_its_contraction_where_all_else_is_held(
    at: At, product: str, damping: float
) -> None:
    shifted = at.problem.a + damping * EYE
    limit, alpha = torch.linalg.solve(shifted, at.v), 0.13
    contraction = EYE - alpha * shifted
    for steps in range(1, 200):
        found = at.run(f"soba+{product}", alpha=alpha, damping=damping)
        left = torch.linalg.matrix_power(contraction, steps) @ -limit
        assert (at.q - limit - left).norm() < 1e-10 * limit.norm()
        total = at.problem.ridge * at.alpha + at.problem.d - at.problem.b_matrix @ at.q
        assert relative_error(found, total) < 1e-12
    # The slowest factor, 0.87 without damping, is 1e-12 by then.
    assert relative_error(at.q, limit) < 1e-10
    if not damping:
        assert relative_error(found, at.exact) < 1e-10


def test_conjugate_gradient_of_one_iteration_becomes_exact_from_its_own_start(at: At) -> None:
    """Steepest descent then, whose error shrinks by (κ − 1)/(κ + 1) = 9/11 at least a step."""
    for _ in range(math.ceil(math.log(1e-11) / math.log(9 / 11))):
        warm = at.run("cg", iterations=1, warm_start=True)
        cold = at.run("cg", memory={}, iterations=1)
    assert relative_error(warm, at.exact) < 1e-10
    assert relative_error(cold, at.exact) > 0.1
    assert torch.equal(cold, at.run("cg", memory={}, iterations=1, warm_start=True))


def test_a_warm_neumann_series_goes_on_where_the_last_one_ended(at: At) -> None:
    """K steps of gradient descent each from the second on; the first one takes K + 1 from 0."""
    contraction = EYE - 0.1 * at.problem.a
    limit = at.inverse @ at.v
    for calls in range(1, 6):
        at.run("neumann", iterations=3, alpha=0.1, warm_start=True)
        left = torch.linalg.matrix_power(contraction, 4 + 3 * (calls - 1)) @ -limit
        assert (at.q - limit - left).norm() < 1e-12 * limit.norm()


def test_soba_is_the_warm_neumann_series_of_one_iteration(at: At) -> None:
    def hvp(q: list[Tensor]) -> list[Tensor]:
        return [at.problem.a @ q[0]]

    start = [draw(8)]
    steps = (solver(hvp, [at.v], alpha=0.1, damping=0.3, start=start) for solver in (
        soba, lambda *given, **options: neumann(*given, iterations=1, **options)
    ))  # fmt: skip
    assert torch.equal(*(q for (q,) in steps))


@pytest.mark.parametrize(
    ("method", "options", "products"),
    [
        ("soba", {}, (0, 1)),
        ("neumann", {"iterations": 3, "alpha": 0.1}, (3, 3)),
        ("cg", {"iterations": 3}, (3, 4)),
    ],
)
def test_what_a_start_costs(
    at: At, method: str, options: dict[str, Any], products: tuple[int, int]
) -> None:
    count = 0

    def hvp(q: list[Tensor]) -> list[Tensor]:
        nonlocal count
        count += 1
        return [at.problem.a @ q[0]]

    start = [draw(8)]
    before = start[0].clone()
    for given, expected in zip((None, start), products, strict=True):
        count = 0
        resolve(method).solver(hvp, [at.v], start=given, **options)  # type: ignore[attr-defined]
        assert count == expected
    assert torch.equal(start[0], before)


def test_a_start_that_is_right_stays(at: At) -> None:
    exact = [at.inverse @ at.v]

    def hvp(q: list[Tensor]) -> list[Tensor]:
        return [at.problem.a @ q[0]]

    for found in (
        cg(hvp, [at.v], start=exact),
        soba(hvp, [at.v], start=exact),
        neumann(hvp, [at.v], start=exact),
    ):
        assert relative_error(found[0], exact[0]) < 1e-13
    # The tolerance is that of v, not of what the start leaves of it.
    near = [exact[0] + 1e-6 * draw(8)]
    assert cg(hvp, [at.v], tolerance=1e-3, start=near)[0] is near[0]


def test_without_a_memory_every_call_is_the_first(ridge: Reference) -> None:
    for method, options in WITH_MEMORY:
        first = run(ridge, method, **options)
        assert torch.equal(run(ridge, method, **options), first)
        memory: dict[str, Any] = {}
        assert torch.equal(run(ridge, method, memory=memory, **options), first)
        kept = memory["q"]
        second = run(ridge, method, memory=memory, **options)
        assert not torch.equal(second, first)
        # And goes on from what it is given alone: a copy is as good.
        assert torch.equal(run(ridge, method, memory={"q": kept}, **options), second)
    cold: dict[str, Any] = {}
    run(ridge, "cg", memory=cold)
    run(ridge, "neumann", memory=cold, warm_start=False)
    assert cold == {}


def test_lower_parameters_of_other_shapes_or_types_than_before(at: At) -> None:
    first = at.run("soba")
    at.memory["q"] = [torch.cat(at.memory["q"])]
    assert torch.equal(at.run("soba"), first)  # anew
    second = at.run("soba")
    assert not torch.equal(second, first)
    at.memory["q"] = [q.float() for q in (0 * at.q[:3], 0 * at.q[3:])]
    assert torch.equal(at.run("soba"), first)  # a step from 0 in float64
    assert at.q.dtype is torch.float64
    assert not at.q.requires_grad


@pytest.mark.usefixtures("registered")
def test_a_start_is_of_the_type_of_v(at: At) -> None:
    """torch.lerp refuses two types."""
    first = at.run("averaged")
    at.memory["q"] = [q.float() for q in at.memory["q"]]
    assert relative_error(at.run("averaged"), first) < 1e-7  # rounded in between
    assert at.q.dtype is torch.float64


def test_steps_that_diverge_are_named(at: At) -> None:
    """By the Rayleigh quotient of q, which turns to the eigenvalue 10 that α = 0.25 misses."""
    named = r"SOBA's q diverges with alpha=0\.25: .*alpha must"
    with pytest.warns(CurvatureWarning, match=named):
        at.repeat(20, "soba", alpha=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        with pytest.raises(UserError, match=r"q is not finite .* alpha=0\.25: alpha must be less"):
            at.repeat(3000, "soba", alpha=0.25)
    assert at.q.isfinite().all()  # the one before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at.repeat(50, "soba", memory={}, alpha=0.199)
    warm = {"iterations": 1, "alpha": 0.25, "warm_start": True}
    with pytest.warns(CurvatureWarning, match="the Neumann series diverges with alpha=0"):
        at.repeat(20, "neumann", memory={}, **warm)
    with pytest.warns(CurvatureWarning, match="negative eigenvalue"):
        soba(lambda q: [-q[0]], [at.v], start=[at.v])


def test_a_warm_conjugate_gradient_starts_anew_where_it_cannot_move(at: At) -> None:
    start = [draw(8)]
    with pytest.warns(CurvatureWarning, match="in iteration 1 "):
        (found,) = cg(lambda q: [-q[0]], [at.v], start=start)
    assert torch.equal(found, at.v)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("soba", {"alpha": 0.0}, "alpha is 0.0, expected more than 0"),
        ("soba", {"alpha": "auto"}, "alpha is 'auto', expected more than 0"),
        ("soba", {"damping": -1}, "damping is -1, expected at least 0"),
        ("soba", {"start": None}, "unknown option of hypergradient method 'soba' 'start'"),
        ("soba", {"warm_start": True}, "unknown option of hypergradient method 'soba'"),
        ("cg", {"start": None}, "unknown option of hypergradient method 'cg' 'start'"),
        ("cg", {"warm_start": "yes"}, "warm_start is 'yes', expected true or false"),
        ("cg", {"warm_start": 1}, "warm_start is 1, expected true or false"),
        ("neumann", {"warm_start": True, "iterations": 0}, "iterations is 0, .* at least 1"),
        ("nystrom", {"warm_start": True}, "unknown option of hypergradient method 'nystrom'"),
    ],
)
def test_wrong_options_are_named_before_a_run(
    method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ProblemConfig(type=method, options=options)


def test_the_list_of_methods_says_who_can_start_warm() -> None:
    rows = {row.name: row.options for row in describe(["cg", "neumann", "soba", "nystrom"], {})}
    assert rows["cg"]["warm_start"] is rows["neumann"]["warm_start"] is False
    assert rows["soba"] == {"alpha": 0.1, "damping": 0.0}
    assert "warm_start" not in rows["nystrom"]
    assert not Point(None, [], [], 52).memory  # type: ignore[arg-type]


def averaged(
    hvp: Any, v: list[Tensor], *, share: float = 0.5, start: list[Tensor] | None
) -> list[Tensor]:
    """The mean of v over upper steps, the past ones less and less."""
    if start is None:
        return v
    return [torch.lerp(old, new, share) for old, new in zip(start, v, strict=True)]


def optional(hvp: Any, v: list[Tensor], *, start: list[Tensor] | None = None) -> list[Tensor]:
    """Twice v, or the start and v."""
    return [a + b for a, b in zip(v, start or v, strict=True)]


@pytest.fixture
def registered() -> Iterator[None]:
    register(ImplicitMethod("averaged", averaged))
    register(ImplicitMethod("optional", optional))
    register(ImplicitMethod("lost", lambda hvp, v, *, start: [x / 0 for x in v]))
    yield
    for name in ("averaged", "optional", "lost"):
        del METHODS[name]


@pytest.mark.usefixtures("registered")
def test_a_third_party_registers_solvers_with_a_memory(at: At) -> None:
    assert resolve("averaged").options == {"share": 0.5}
    at.run("averaged", share=0.25)
    v = at.v
    at.v = at.problem.vector(at.phi + 1)
    at.phi = at.phi + 1
    at.run("averaged+forward", share=0.25)
    assert relative_error(at.q, 0.75 * v + 0.25 * at.v) < 1e-14
    assert resolve("optional").options == {"warm_start": False}
    memory: dict[str, Any] = {}
    at.run("optional", memory=memory)
    assert memory == {}
    for times in (2, 3, 4):
        at.run("optional", memory=memory, warm_start=True)
        assert relative_error(torch.cat(memory["q"]), times * at.v) < 1e-14
    with pytest.raises(FloatingPointError, match="q of hypergradient method 'lost' is not finite"):
        at.run("lost", memory=memory)
    assert relative_error(torch.cat(memory["q"]), 4 * at.v) < 1e-14
