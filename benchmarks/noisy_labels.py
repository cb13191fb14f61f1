"""Digits with unreliable annotators: learned weights against none, over seeds.

python benchmarks/noisy_labels.py --seeds 5 --hypergradient cg
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from dreamprm.data.batches import BatchStream
from dreamprm.engines.base import EngineConfig
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.inference.tables import table
from dreamprm.models.weighting import DomainTable
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.noisy_labels import (
    AnnotatorWeighting,
    DigitClassifier,
    noisy_digits,
    stack,
)

ANNOTATORS, UNRELIABLE, FLIPPED = 6, 4, 0.4


def accuracy_and_weights(
    seed: int, learned: bool, hypergradient: str, steps: int
) -> tuple[float, dict[str, float]]:
    """Test accuracy of one run, and the weight of each annotator."""
    data = noisy_digits(ANNOTATORS, UNRELIABLE, FLIPPED, meta=100, test=600, seed=seed)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    classifier = DigitClassifier(
        "classifier",
        ProblemConfig(type=hypergradient, unroll_steps=5),
        module=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01),
        train_data_loader=BatchStream(data.train, 60, stack, seed),
    )
    annotators = DomainTable([f"annotator-{i}" for i in range(ANNOTATORS)])
    weighting = AnnotatorWeighting(
        module=annotators,
        optimizer=torch.optim.AdamW(annotators.parameters(), lr=0.05),
        train_data_loader=BatchStream(data.meta, 100, stack, seed),
    )
    engine = ReweightingEngine(
        classifier, weighting if learned else None, EngineConfig(train_iters=steps)
    )
    engine.run()
    with torch.no_grad():
        right = network(data.test["image"]).argmax(-1) == data.test["label"]
    return right.float().mean().item(), engine.weights()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--hypergradient", default="identity")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        plain, _ = accuracy_and_weights(seed, False, options.hypergradient, options.steps)
        learned, weights = accuracy_and_weights(seed, True, options.hypergradient, options.steps)
        values = list(weights.values())
        reliable, unreliable = values[:-UNRELIABLE], values[-UNRELIABLE:]
        rows.append(
            [
                str(seed),
                f"{plain:.3f}",
                f"{learned:.3f}",
                f"{min(reliable):.2f}",
                f"{max(unreliable):.2f}",
            ]
        )
    header = ["seed", "unweighted", "learned", "lowest reliable", "highest unreliable"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
