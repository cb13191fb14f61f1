"""A table of rows: its hypergradient by the rows of a batch alone is that of the whole table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from dreamprm.data.batches import BatchStream
from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.errors import UserError
from dreamprm.hypergradients import METHODS
from dreamprm.hypergradients.interface import STEPS
from dreamprm.problems.base import Problem
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem
from dreamprm.tasks import Columns
from dreamprm.weighting.instances import InstanceTable

ROWS = 40
BY_ROWS = [name for name, method in METHODS.items() if STEPS not in method.needs]


class Fit(ReweightedProblem):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return (self(batch["x"]).squeeze(-1) - batch["y"]).square()


class Trust(WeightingProblem):
    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.model(batch["x"]).squeeze(-1) - batch["y"]).square().mean()


class OfRows(WeightingProblem):
    """An upper loss that asks for the weights of rows of its own."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        losses = (self.model(batch["x"]).squeeze(-1) - batch["y"]).square()
        return (self(batch, losses) * losses).mean()


def loader(seed: int) -> BatchStream:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 3, generator=random, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + (x[:, 0] > 0)
    return BatchStream(Columns({"x": x, "y": y}), 8, default_collate, seed)


def table_after(
    by_rows: bool, method: str, folder: Path, upper: type[Problem] = Trust, **config: Any
) -> tuple[Tensor, bool]:
    """The raw values after three upper steps, and whether the last gradient was sparse."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    table = InstanceTable(ROWS).double()
    table.by_rows = by_rows
    options = {"rank": 5} if method == "nystrom" else {}
    lower = Fit(
        config=ProblemConfig(type=method, options=options, unroll_steps=2, **config),
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=0.01),
        train_data_loader=loader(1),
    )
    sparse = []

    class Watched(upper):  # type: ignore[misc, valid-type]
        def grad_callback(self) -> None:
            sparse.append(self.module.alpha.grad.is_sparse)

    weighting = Watched(
        config=ProblemConfig(),
        module=table,
        optimizer=torch.optim.SGD(table.parameters(), lr=10.0),
        train_data_loader=loader(2),
    )
    engine = Engine(
        config=EngineConfig(train_iters=6, run_directory=folder, strategy="cpu"),
        problems=[weighting, lower],
        dependencies={"u2l": {weighting: [lower]}, "l2u": {lower: [weighting]}},
    )
    engine.run()
    return table.alpha.detach().clone(), sparse[-1]


CONFIGS: list[dict[str, int]] = [
    {"gradient_accumulation": 3},
    {"hypergradient_batch_size": 5},
    {"fidelity_every": 2},
]


@pytest.mark.parametrize(
    ("method", "config"),
    [*((method, {}) for method in [*BY_ROWS, "cg+forward"]), *(("identity", c) for c in CONFIGS)],
)
def test_by_rows_is_the_whole_table(method: str, config: dict[str, Any], tmp_path: Path) -> None:
    some, sparse = table_after(True, method, tmp_path / "some", **config)
    whole, dense = table_after(False, method, tmp_path / "whole", **config)
    assert sparse
    assert not dense
    moved = (whole - whole.mode().values).abs().max()
    assert moved > 1e-3
    # Differences round otherwise where sums have other terms of zero.
    torch.testing.assert_close(some, whole, rtol=0, atol=float(moved) * 1e-6)


def test_an_upper_loss_that_asks_for_other_rows_is_refused(tmp_path: Path) -> None:
    # f2sa evaluates the upper loss where α is given by the lower batch's rows.
    with pytest.raises(UserError, match="rows that are not in the lower"):
        table_after(True, "f2sa", tmp_path, OfRows)
