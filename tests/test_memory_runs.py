"""Whole runs by methods whose q goes on from step to step: where they end, resume and branch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.quadratics import (
    STEP,
    UPPER_STEP,
    Quadratic,
    Upper,
    Values,
    distance,
    engine,
    quadratic,
)
from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.hypergradients.references import relative_error
from dreamprm.problems.base import Problem
from dreamprm.problems.config import ProblemConfig
from tests.test_method_memory import WITH_MEMORY, registered  # noqa: F401
from tests.toy import Weighting, toy

COLD: list[tuple[str, dict[str, Any]]] = [  # as many products with H as these
    ("neumann", {"alpha": 0.1, "iterations": 1}),
    ("neumann", {"alpha": 0.1, "iterations": 1, "warm_start": False}),
    ("cg", {"iterations": 2}),
]


@pytest.mark.parametrize(("method", "options"), WITH_MEMORY)
def test_a_whole_run_ends_at_the_optimum(method: str, options: dict[str, Any]) -> None:
    """In as many steps as shrink an error by 1e-9, by the eigenvalues of SOBA's whole step.

    The tolerance leaves a factor of 100 for how far the error grows before it shrinks. Warm
    conjugate gradient contracts faster: by 9/11 a step where SOBA's α does by 0.9.
    """
    problem = quadratic(seed=1)
    running = engine(problem, _steps(problem), method, options=options)
    running.run()
    assert distance(problem, running.problems[0].module.values.detach()) < 1e-7


@pytest.mark.parametrize(("method", "options"), COLD)
def test_a_cold_one_of_as_many_products_ends_elsewhere(
    method: str, options: dict[str, Any]
) -> None:
    problem = quadratic(seed=1)
    running = engine(problem, _steps(problem), method, options=options)
    running.run()
    assert distance(problem, running.problems[0].module.values.detach()) > 0.05
    assert "q" not in "".join(running.problems[1]._memory)


def _steps(problem: Quadratic) -> int:
    """Of SOBA until all of (φ, q, α) has shrunk by 1e-9, with α = STEP for q."""
    n, k = len(problem.b), len(problem.d)
    phi, q, alpha = slice(0, n), slice(n, 2 * n), slice(2 * n, 2 * n + k)
    parts = [torch.eye(2 * n + k, dtype=torch.float64) for _ in range(3)]
    parts[0][phi, phi] -= STEP * problem.a
    parts[0][phi, alpha] -= STEP * problem.b_matrix.T
    parts[1][q, q] -= STEP * problem.a
    parts[1][q, phi] += STEP * problem.c_matrix
    parts[2][alpha, alpha] -= UPPER_STEP * problem.ridge * torch.eye(k, dtype=torch.float64)
    parts[2][alpha, q] += UPPER_STEP * problem.b_matrix
    radius = float(torch.linalg.eigvals(parts[2] @ parts[1] @ parts[0]).abs().max())
    assert radius < 0.97
    return math.ceil(math.log(1e-9) / math.log(radius))


@pytest.mark.parametrize(("method", "options"), WITH_MEMORY)
@pytest.mark.parametrize("at_step", [6, 7])
def test_a_resumed_run_ends_where_the_whole_one_does(
    method: str, options: dict[str, Any], at_step: int, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {"method": method, "problem": {"options": options}}
    whole = toy(steps=14, **parts)
    whole.run()
    toy(steps=at_step, run_directory=tmp_path, **parts).run()
    second = toy(steps=14, run_directory=tmp_path, **parts)
    assert second.resume()
    second.run()
    assert torch.equal(whole.upper.module.alpha, second.upper.module.alpha)
    (key,) = whole.lower._memory
    assert key == "q along weighting > regression > weighting"
    pairs = zip(whole.lower._memory[key], second.lower._memory[key], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_state_dict_stays_as_it_was_taken() -> None:
    running = toy(steps=4, method="soba")
    running.run()
    state = running.lower.state_dict()["memory"]
    before = {key: [q.clone() for q in qs] for key, qs in state.items()}
    for qs in running.lower._memory.values():
        for q in qs:
            q.zero_()
    assert before
    for key, qs in state.items():
        assert all(torch.equal(*pair) for pair in zip(qs, before[key], strict=True))
        assert any(q.any() for q in qs)


@pytest.mark.parametrize("method", ["soba", "soba+finite_difference", "cg", "neumann"])
def test_a_comparison_starts_where_the_method_did_and_moves_nothing(method: str) -> None:
    """The exact product from another start would be another hypergradient."""
    options = {} if method.startswith("soba") else {"warm_start": True, "iterations": 1}
    errors: list[float] = []

    class Telling(Weighting):
        def grad_callback(self) -> None:
            errors.append(self.regression.stats.get("hypergradient_error", -1.0))

    runs = []
    for every in (0, 2):
        errors.clear()
        running = toy(
            steps=12,
            method=method,
            upper=Telling,
            problem={"options": options, "fidelity_every": every},
        )
        running.run()
        runs.append([p.detach() for q in running.problems for p in q.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert len(errors) == 6
    # In fp32; differences are right to 1e-3 in these few numbers.
    assert min(errors) >= 0
    assert max(errors) < (1e-2 if "difference" in method else 1e-5)


class Bottom(Problem):
    """φ under two uppers, neither of which ever moves it."""

    def training_step(self, batch: tuple[Quadratic, Quadratic]) -> Tensor:
        phi = [self.module.values]
        pairs = zip(batch, (self.first, self.second), strict=True)
        return sum(each.lower(phi, [upper.module.values]) for each, upper in pairs)  # type: ignore[return-value]


class Watching(Upper):
    def grad_callback(self) -> None:
        self.found = self.module.values.grad.clone()


def test_every_path_through_a_problem_has_a_start_of_its_own() -> None:
    """Two uppers over one lower problem, all of them held: each v has its own H⁻¹v."""
    problems = quadratic(0), quadratic(1)
    below = Values(8)
    bottom = Bottom(
        "below",
        ProblemConfig(type="cg", options={"iterations": 1, "warm_start": True}),
        module=below,
        optimizer=torch.optim.SGD(below.parameters(), lr=0.0),
        train_data_loader=[problems],
    )
    uppers = []
    for name, problem in zip(("first", "second"), problems, strict=True):
        module = Values(3)
        uppers.append(
            Watching(
                name,
                ProblemConfig(),
                module=module,
                optimizer=torch.optim.SGD(module.parameters(), lr=0.0),
                train_data_loader=[problem],
            )
        )
    Engine(
        [*uppers, bottom],
        EngineConfig(train_iters=150, strategy="cpu"),
        {"u2l": {upper: [bottom] for upper in uppers}, "l2u": {bottom: uppers}},
    ).run()
    hessian = problems[0].a + problems[1].a
    phi = torch.zeros(8, dtype=torch.float64)
    for upper, problem in zip(uppers, problems, strict=True):
        q = torch.linalg.solve(hessian, problem.vector(phi))
        # Condition of at most 10: 150 steps shrink the error by (9/11)¹⁵⁰ = 1e-13.
        assert relative_error(upper.found, problem.d - problem.b_matrix @ q) < 1e-10
    assert set(bottom._memory) == {
        "q along first > below > first",
        "q along second > below > second",
    }


@pytest.mark.usefixtures("registered")
def test_a_third_partys_memory_outlasts_a_resume(tmp_path: Path) -> None:
    whole = toy(steps=12, method="averaged")
    whole.run()
    toy(steps=6, run_directory=tmp_path, method="averaged").run()
    second = toy(steps=12, run_directory=tmp_path, method="averaged")
    assert second.resume()
    second.run()
    assert torch.equal(whole.upper.module.alpha, second.upper.module.alpha)
    plain = toy(steps=12, method="identity+double_backward")
    plain.run()
    assert not torch.equal(plain.upper.module.alpha, whole.upper.module.alpha)
