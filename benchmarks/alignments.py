"""What decides a group's learned weight: its gradient beside the meta set's, over training.

    python benchmarks/alignments.py demo --every 100 seed=0

Trains a run, and every so many steps takes of each group, on the same rows every time, the gradient
g_k of its mean loss, and the meta set's g. With H = I a group's weight moves by its share of the
batch times ⟨g_k, g⟩ = cosine · ‖g_k‖ · ‖g‖: tables of the weight, the cosine and the norm. Where
the lower optimizer scales coordinates, as Adam does, what a step does for the meta set is the
product of the scaled gradient; the fourth table has its cosine, the preconditioner being that of
the run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamprm import load_config
from dreamprm.data.batches import to_device
from dreamprm.run_directory.opening import open_run
from dreamprm.tables import table
from dreamprm.tasks.modules import find_task


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """As one vector."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found]).double()


def preconditioner(optimizer: Any, parameters: Sequence[Tensor]) -> Tensor:
    """What Adam divides by, as one vector; ones before its first step, or of another optimizer."""
    states = [optimizer.state.get(each, {}) for each in parameters]
    if not all("exp_avg_sq" in state for state in states):
        return torch.ones(sum(each.numel() for each in parameters), dtype=torch.float64)
    group = optimizer.param_groups[0]
    found = []
    for state in states:
        corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        found.append(corrected.double().sqrt().flatten() + group["eps"])
    return torch.cat(found)


def cosine(left: Tensor, right: Tensor) -> float:
    """Of the angle between two vectors."""
    return float(left @ right / (left.norm() * right.norm()))


class Watch:
    """The same rows of every group and of the meta set, looked at whenever it is asked.

    Args:
        engine: of a reweighting run.
        most: rows of a group, and batches of the meta set.
    """

    def __init__(self, engine: Any, most: int, meta: int) -> None:
        self.engine = engine
        (stream,), (of_meta,) = engine.lower.train_data_loader, engine.upper.train_data_loader
        groups: dict[str, list[int]] = {}
        for place, name in enumerate(engine.rows.column(engine.rows.group)):
            rows = groups.setdefault(str(name), [])
            if len(rows) < most:
                rows.append(place)
        self.batches = {name: stream.collated(rows) for name, rows in sorted(groups.items())}
        self.meta = [of_meta.collated(of_meta.indices(n)) for n in range(meta)]

    def look(self) -> dict[str, dict[str, float]]:
        """Of every group the weight, the cosines and the norm."""
        lower, upper = self.engine.lower, self.engine.upper
        parameters = [each for each in lower.module.parameters() if each.requires_grad]
        training = lower.module.training
        lower.module.eval()
        device = lower.device
        of_meta = torch.stack(
            [
                gradient(upper.training_step(to_device(batch, device))["loss"], parameters)
                for batch in self.meta
            ]
        ).mean(0)
        scale, weights = preconditioner(lower.optimizer, parameters), self.engine.weights()
        found = {}
        for name, batch in self.batches.items():
            g = gradient(lower.sample_losses(to_device(batch, device)).mean(), parameters)
            found[name] = {
                "weight": weights.get(name, 1.0),
                "cosine": cosine(g, of_meta),
                "norm": float(g.norm()),
                "cosine, scaled as by Adam": cosine(g / scale.sqrt(), of_meta / scale.sqrt()),
            }
        lower.module.train(training)
        return found


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a path, or the name of a shipped config")
    parser.add_argument("--every", type=int, default=100, help="lower steps")
    parser.add_argument("--rows", type=int, default=64, help="of a group")
    parser.add_argument("--meta", type=int, default=8, help="batches of the meta set")
    parser.add_argument("words", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    looks: dict[int, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        config = load_config(options.config, [*options.words, f"out={out}", "baseline=false"])
        with open_run(out, config, resume=False, overwrite=False) as run:
            task = find_task(config.task).build(config, run)
            engine = task.engine(config, out)
            watch = Watch(engine, options.rows, options.meta)
            for step in range(config.steps + 1):
                if step % options.every == 0:
                    looks[step] = watch.look()
                if step < config.steps:
                    engine.global_step += 1
                    engine.train_step()
    for kind in next(iter(looks[0].values())):
        rows = [
            [name, *(f"{look[name][kind]:.2g}" if kind == "norm" else f"{look[name][kind]:.2f}"
                     for look in looks.values())]
            for name in looks[0]
        ]  # fmt: skip
        print(table([kind, *(f"step {step}" for step in looks)], rows), end="\n\n")


if __name__ == "__main__":
    main()
