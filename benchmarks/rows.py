"""What a bi-level cycle costs with a table of a million rows, over one of a thousand.

python benchmarks/rows.py

A small network on rows of 16 numbers, weighting=instance_table. Prints JSON lines: the ratio of the
times side by side in one process, and the bytes that a cycle adds at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.hypergradients.cost import operations, peak_bytes
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem
from dreamprm.tasks import Columns, ReweightingTask, RunConfig
from dreamprm.tasks.config import OptimizerConfig


class Fit(ReweightedProblem):
    """Squared error of a row."""

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """[b]."""
        return (self(batch["x"]).squeeze(-1) - batch["y"]).square()


class Trust(WeightingProblem):
    """The same on the meta set."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """A scalar."""
        return (self.model(batch["x"]).squeeze(-1) - batch["y"]).square().mean()


def cycle(rows: int, dense: bool) -> Any:
    """A function that takes five lower steps and one upper one."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 16, generator=random)
    level = OptimizerConfig(learning_rate=1e-3, batch_size=64)
    # A decay that is too small to matter has the whole table decayed at every step.
    upper = OptimizerConfig(learning_rate=0.1, batch_size=64, weight_decay=1e-12 if dense else 0)
    config = RunConfig(steps=10**6, out="none", weighting="instance_table", device="cpu",
                       lower=level, upper=upper)  # fmt: skip
    data = Columns({"x": x, "y": x.sum(1)})
    task = ReweightingTask(
        config,
        lambda: nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 1)),
        Fit,
        Trust,
        data,
        data[:1000],
        digests={"training data": "drawn"},
    )
    engine = task.engine(config, Path("none"))

    def run() -> None:
        for _ in range(config.unroll_steps):
            engine.global_step += 1
            engine.train_step()

    return run


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    cycles = {
        "a thousand rows": cycle(1000, False),
        "by rows": cycle(options.rows, False),
        "the whole table": cycle(options.rows, True),
    }
    times: dict[str, list[float]] = {name: [] for name in cycles}
    for run in cycles.values():
        run()
    for _ in range(options.repeats):
        for name, run in cycles.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["a thousand rows"])
    counted = {name: operations(run) for name, run in cycles.items()}
    added = {name: peak_bytes(run) for name, run in cycles.items()}
    for name, found in times.items():
        print(
            json.dumps(
                {
                    "benchmark": "rows",
                    "rows": 1000 if name == "a thousand rows" else options.rows,
                    "step": name,
                    "milliseconds": round(1000 * statistics.median(found), 2),
                    "over a thousand rows": round(statistics.median(found) / base, 3),
                    "operations over a thousand rows": round(
                        counted[name] / counted["a thousand rows"], 4
                    ),
                    "MB at the peak of a cycle": round(added[name] / 1e6, 2),
                }
            )
        )


if __name__ == "__main__":
    main()
