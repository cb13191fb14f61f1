"""A small reweighting task of two domains: y = xφ, the second one labelled −y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.data.batches import BatchStream
from dreamprm.engines.base import EngineConfig
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem
from dreamprm.weighting.groups import DomainTable


class Regression(ReweightedProblem):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return (self(batch["x"]).squeeze(-1) - batch["y"]).square()


class Weighting(WeightingProblem):
    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.regression(batch["x"]).squeeze(-1) - batch["y"]).square().mean()


def rows(count: int, seed: int, flip: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5])
    domain = torch.arange(count) % 2
    y = torch.where((domain == 1) & flip, -y, y)
    return [{"x": x[i], "y": y[i], "domain": domain[i]} for i in range(count)]


def stack(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def toy(
    steps: int = 20,
    method: str = "t1t2",
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    module: nn.Module | None = None,
    engine: type[ReweightingEngine] = ReweightingEngine,
    lower: type[Regression] = Regression,
    upper: type[WeightingProblem] = Weighting,
    problem: dict[str, Any] | None = None,
    upper_problem: dict[str, Any] | None = None,
    batch_sizes: tuple[int, int] = (16, 16),
    **config: Any,
) -> ReweightingEngine:
    """An engine that is ready to run.

    Args:
        problem, upper_problem: of the ProblemConfigs.
        batch_sizes: of the lower and the upper problem.
        config: of the EngineConfig.
    """
    torch.manual_seed(0)
    module = module if module is not None else nn.Linear(3, 1)
    chosen = optimizer(module) if optimizer else torch.optim.AdamW(module.parameters(), lr=0.05)
    table = DomainTable(["right", "wrong"])
    return engine(
        lower(
            "regression",
            ProblemConfig(**{"type": method, "unroll_steps": 2} | (problem or {})),
            module=module,
            optimizer=chosen,
            scheduler=scheduler(chosen) if scheduler else None,
            train_data_loader=BatchStream(rows(64, 1, True), batch_sizes[0], stack, 0),
        ),
        upper(
            config=ProblemConfig(**upper_problem or {}),
            module=table,
            optimizer=torch.optim.AdamW(table.parameters(), lr=0.1),
            train_data_loader=BatchStream(rows(32, 2, False), batch_sizes[1], stack, 0),
        ),
        EngineConfig(train_iters=steps, strategy="cpu", **config),
    )
