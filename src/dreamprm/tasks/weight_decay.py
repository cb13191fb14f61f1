"""A weight decay for every group of parameters, learned on validation rows: no sample is weighted.

The rows are scikit-learn's 442 diabetes patients: ten measurements, and the disease's progression
a year later. Columns of noise are put beside them, in groups, which a linear regression on few rows
overfits unless their decay is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import default_collate

from dreamprm.config.checking import check_numbers
from dreamprm.data.batches import BatchStream
from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.errors import UserError
from dreamprm.problems.weight_decay import DecayedRegression, GroupDecay, Validation, squared_error
from dreamprm.run_directory.opening import RunDirectory
from dreamprm.tasks.columns import Columns
from dreamprm.tasks.config import BilevelConfig
from dreamprm.tasks.levels import adamw, engine_config, lower_config, upper_config
from dreamprm.tasks.reweighting import digest
from dreamprm.tasks.schedules import build_schedule
from dreamprm.words import Metric, Words

MEASURED = "measured"
ROWS = ("train", "validation", "test")


@dataclass
class Config(BilevelConfig):
    """One run on the diabetes rows."""

    learn: bool = True  # else every group keeps the decay of the start
    start: float = 0.1  # the decay of every group at the start
    noise_groups: int = 3
    noise_columns: int = 30  # of every group of noise
    train_rows: int = 150
    validation_rows: int = 150

    @property
    def learned(self) -> bool:
        """Whether the decays are."""
        return self.learn

    def plain(self) -> Config:
        """The same with the decay of the start for every group."""
        return replace(self, learn=False)

    def check(self, where: str) -> None:
        """Refuses values that are out of range."""
        super().check(where)
        check_numbers(self, where, 1, ("noise_columns", "train_rows", "validation_rows"))
        check_numbers(self, where, 0, ("noise_groups",))
        if not self.start > 0:
            raise UserError(f"{where}: start is {self.start}, expected more than 0")


class GroupedLinear(nn.ModuleDict):
    """A linear map of columns that stand in groups, from zero.

    Args:
        sizes: the columns of every group, by its name, in their order.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__({name: nn.Linear(size, 1, bias=False) for name, size in sizes.items()})
        self.sizes = list(sizes.values())
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Of x [b, d]; [b]."""
        parts = x.split(self.sizes, dim=1)
        found = [each(part) for each, part in zip(self.values(), parts, strict=True)]
        return torch.cat(found, dim=1).sum(1)


class DecayEngine(Engine):
    """Validates on the test rows, and logs the decay of every group.

    Args:
        lower: the regression.
        upper: the decay's problem; None keeps the decay of the start.
        config: of the engine.
        test: rows.
    """

    def __init__(
        self,
        lower: DecayedRegression,
        upper: Validation | None,
        config: EngineConfig,
        test: dict[str, Tensor],
    ) -> None:
        self.lower, self.upper, self.test = lower, upper, test
        uppers: dict[Any, Sequence[Any]] = {} if upper is None else {upper: [lower]}
        lowers: dict[Any, Sequence[Any]] = {} if upper is None else {lower: [upper]}
        problems = [lower] if upper is None else [upper, lower]
        super().__init__(problems, config, {"u2l": uppers, "l2u": lowers})

    def validation(self) -> dict[str, float]:
        """The share of the test rows' variance that is explained."""
        device = next(self.lower.module.parameters()).device
        rows = {name: column.to(device) for name, column in self.test.items()}
        left = squared_error(self.lower.module, rows) / rows["y"].var(unbiased=False)
        return {"explained": 1 - left.item()}

    def decays(self) -> dict[str, float]:
        """Of every group by its name."""
        return (self.upper.module if self.upper is not None else self.lower.fixed).named()

    def metrics(self) -> dict[str, float]:
        """The decays."""
        return {f"decay/{name}": value for name, value in self.decays().items()}

    def charts(self) -> dict[str, str]:
        """All decays in one chart."""
        return {"decay": r"decay/.+"}


class WeightDecayTask:
    """The rows, and the two problems over them."""

    def __init__(self, config: Config) -> None:
        self.sizes, self.rows = diabetes(config)
        self.digests = {f"{name} rows": digest(rows) for name, rows in self.rows.items()}
        decays = {f"decay/{name}": Metric(f"decay, {name}") for name in self.sizes}
        explained = Metric("explained", "share of the test rows' variance that is explained")
        self.words = Words(
            meta="validation rows",
            metrics={"explained": explained} | decays,
            tiles=("explained",),
            test="test rows",
            plain="one decay for all",
        )

    def engine(self, config: Config, folder: Path) -> DecayEngine:
        """The engine of one run, a function of the seed."""
        torch.manual_seed(config.seed)
        decay, module = GroupDecay(list(self.sizes), config.start), GroupedLinear(self.sizes)
        optimizer = adamw(module.parameters(), config.lower)
        lower = DecayedRegression(
            lower_config(config),
            module=module,
            optimizer=optimizer,
            scheduler=build_schedule(optimizer, config.lower, config.steps),
            train_data_loader=self._stream("train", config.lower, config.seed),
            fixed=GroupDecay(list(self.sizes), config.start),
        )
        upper = None
        if config.learned:
            optimizer = adamw(decay.parameters(), config.upper)
            upper = Validation(
                upper_config(config),
                module=decay,
                optimizer=optimizer,
                scheduler=build_schedule(optimizer, config.upper, config.upper_steps),
                train_data_loader=self._stream("validation", config.upper, config.seed),
            )
        test = {name: torch.as_tensor(each) for name, each in self.rows["test"].columns.items()}
        return DecayEngine(lower, upper, engine_config(config, folder), test)

    def _stream(self, name: str, level: Any, seed: int) -> BatchStream:
        return BatchStream(
            self.rows[name], level.batch_size // level.accumulate, default_collate, seed
        )

    def end(self, engine: DecayEngine, folder: Path) -> dict[str, float]:
        """What is explained, and the decays."""
        with torch.no_grad():
            return engine.validation() | engine.metrics()

    def facts(self) -> dict[str, Any]:
        """Nothing beside the numbers."""
        return {}


def build(config: Config, run: RunDirectory) -> WeightDecayTask:
    """See :class:`WeightDecayTask`."""
    return WeightDecayTask(config)


def diabetes(config: Config) -> tuple[dict[str, int], dict[str, Columns]]:
    """Columns by group, and rows by what they are for; all is a function of the seed.

    Every column, and y, has mean 0 and deviation 1 over all rows.

    Raises:
        UserError: no row is left to test on.
    """
    generator = torch.Generator().manual_seed(config.seed)
    measured, progression = map(torch.tensor, load_diabetes(return_X_y=True))
    count = len(progression)
    if config.train_rows + config.validation_rows >= count:
        raise UserError(
            f"train_rows {config.train_rows} and validation_rows {config.validation_rows} leave "
            f"none of {count} to test on"
        )
    sizes = {MEASURED: measured.shape[1]}
    sizes |= {f"noise-{i + 1}": config.noise_columns for i in range(config.noise_groups)}
    noise = torch.randn(count, sum(sizes.values()) - measured.shape[1], generator=generator)
    order = torch.randperm(count, generator=generator)
    x = torch.cat([measured, noise], dim=1)[order]
    y = progression[order]
    x, y = ((each - each.mean(0)) / each.std(0, unbiased=False) for each in (x, y))
    bounds = [0, config.train_rows, config.train_rows + config.validation_rows, count]
    rows = {
        name: Columns({"x": x[start:stop].float(), "y": y[start:stop].float()})
        for name, (start, stop) in zip(ROWS, pairwise(bounds), strict=True)
    }
    return sizes, rows
