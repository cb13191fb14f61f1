"""Quadratic bi-level problems whose optimum is known in closed form, and runs on them.

    L(φ, α) = φᵀAφ/2 + αᵀBφ + bᵀφ
    M(φ, α) = φᵀCφ/2 + cᵀφ + ρ|α|²/2 + dᵀα

in float64, as the simulated problem of benchmark_bilevel (Dagréou et al. 2022, arXiv 2201.13409).
Then φ*(α) = −A⁻¹(Bᵀα + b), v = Cφ + c, and dM/dα = ρα + d − BA⁻¹v is linear in α at φ*(α).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.hypergradients.products import DoubleBackward
from dreamprm.problems.base import Problem
from dreamprm.problems.config import ProblemConfig


@dataclass(frozen=True)
class Quadratic:
    """One such problem.

    Attributes:
        a, b_matrix, b: of L; [n, n], [K, n] and [n].
        c_matrix, c, ridge, d: of M; [n, n], [n], ρ and [K].
    """

    a: Tensor
    b_matrix: Tensor
    b: Tensor
    c_matrix: Tensor
    c: Tensor
    ridge: float
    d: Tensor

    def lower(self, lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        """L, φ in any number of tensors."""
        phi = torch.cat(lower)
        return 0.5 * phi @ self.a @ phi + upper[0] @ self.b_matrix @ phi + self.b @ phi

    def upper(self, lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        """M, φ in any number of tensors."""
        phi, (alpha,) = torch.cat(lower), upper
        of_phi = 0.5 * phi @ self.c_matrix @ phi + self.c @ phi
        return of_phi + 0.5 * self.ridge * alpha @ alpha + self.d @ alpha

    def solution(self, alpha: Tensor) -> Tensor:
        """φ*(α)."""
        return -torch.linalg.solve(self.a, self.b_matrix.T @ alpha + self.b)

    def vector(self, phi: Tensor) -> Tensor:
        """v."""
        return self.c_matrix @ phi + self.c

    def hypergradient(self, phi: Tensor, alpha: Tensor) -> Tensor:
        """ρα + d − BA⁻¹v at any φ: the total derivative where φ is φ*(α)."""
        q = torch.linalg.solve(self.a, self.vector(phi))
        return self.ridge * alpha + self.d - self.b_matrix @ q

    def optimum(self) -> Tensor:
        """The α where dM/dα at φ*(α) is 0."""
        count = len(self.d)
        zero, eye = torch.zeros(count, dtype=torch.float64), torch.eye(count, dtype=torch.float64)
        constant = self.hypergradient(self.solution(zero), zero)
        columns = [self.hypergradient(self.solution(unit), unit) - constant for unit in eye]
        return -torch.linalg.solve(torch.stack(columns, dim=1), constant)


def quadratic(seed: int = 0, variables: int = 8, uppers: int = 3) -> Quadratic:
    """A random one; the eigenvalues of A are 1 to 10, those of C 0.5 to 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def definite(least: float, most: float) -> Tensor:
        basis, _ = torch.linalg.qr(draw(variables, variables))
        return basis @ torch.linspace(least, most, variables, dtype=torch.float64).diag() @ basis.T

    return Quadratic(
        *(definite(1, 10), draw(uppers, variables), draw(variables)),
        *(definite(0.5, 2), draw(variables), 1.0, draw(uppers)),
    )


class Values(nn.Module):
    """Numbers, 0 at first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count, dtype=torch.float64))


class Lower(Problem):
    """φ, by L of the quadratic that its loader gives."""

    def training_step(self, batch: Quadratic) -> Tensor:
        """L."""
        return batch.lower([self.module.values], [self.above.module.values])


class Upper(Problem):
    """α, by M."""

    def training_step(self, batch: Quadratic) -> Tensor:
        """M."""
        return batch.upper([self.below.module.values], [self.module.values])


STEP = 0.1  # of gradient descent on φ: 1 over the largest eigenvalue
UPPER_STEP = 0.05


def engine(
    problem: Quadratic, steps: int, method: str, unroll_steps: int = 1, **parts: Any
) -> Engine:
    """Gradient descent on both levels, ``unroll_steps`` lower steps between two upper ones.

    Args:
        problem: the whole of it at every step.
        steps: lower ones.
        method: of the hypergradient.
        unroll_steps: lower steps before each upper one.
        parts: ``options`` and whatever else the lower ProblemConfig takes.
    """
    lower, upper = Values(len(problem.b)), Values(len(problem.d))
    below = Lower(
        "below",
        ProblemConfig(type=method, unroll_steps=unroll_steps, **parts),
        module=lower,
        optimizer=torch.optim.SGD(lower.parameters(), lr=STEP),
        train_data_loader=[problem],
    )
    above = Upper(
        "above",
        ProblemConfig(),
        module=upper,
        optimizer=torch.optim.SGD(upper.parameters(), lr=UPPER_STEP),
        train_data_loader=[problem],
    )
    config = EngineConfig(train_iters=steps, strategy="cpu")
    return Engine([above, below], config, {"u2l": {above: [below]}, "l2u": {below: [above]}})


def distance(problem: Quadratic, found: Tensor) -> float:
    """‖α − α*‖ / ‖α*‖."""
    optimum = problem.optimum()
    return float((found - optimum).norm() / optimum.norm())


def memory() -> Iterator[dict[str, Any]]:
    """‖α − α*‖ / ‖α*‖ after 500 lower and upper steps in turn, and products with H a step."""
    warm, one = {"warm_start": True}, {"iterations": 1}
    methods: list[tuple[str, dict[str, Any]]] = [
        *(("soba", {}), ("neumann", one | warm), ("neumann", one), ("neumann", {"iterations": 20})),
        *(("cg", one | warm), ("cg", {"iterations": 2}), ("cg", {"iterations": 8})),
    ]
    steps = 500
    for method, options in methods:
        distances = []
        with patch.object(
            DoubleBackward, "hvp", autospec=True, side_effect=DoubleBackward.hvp
        ) as products:
            for seed in range(3):
                problem = quadratic(seed)
                running = engine(problem, steps, method, options=options)
                running.run()
                found = running.problems[0].module.values.detach()
                distances.append(distance(problem, found))
        yield {
            "method": method,
            **options,
            "products with H a step": round(products.call_count / 3 / steps, 2),
            "distance from the optimum, seeds 0 to 2": distances,
        }
