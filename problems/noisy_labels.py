"""A second reweighting task: digits labelled by annotators, some of whom are often wrong.

The images are scikit-learn's handwritten digits (1,797 real scans of 8×8 pixels). The training
labels come from several annotators; of the unreliable ones, a share is flipped to another digit.
The upper level learns from a small clean meta set whom to trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem


class DigitClassifier(ReweightedProblem):
    """The lower problem: classification, a sample being an image."""

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of every image, [b]."""
        return cross_entropy(self(batch["image"]), batch["label"], reduction="none")


class AnnotatorWeighting(WeightingProblem):
    """The upper problem: the classifier's loss on the clean meta set."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy on meta images."""
        return cross_entropy(self.classifier(batch["image"]), batch["label"])


@dataclass(frozen=True)
class Digits:
    """Rows ``{"image": [64], "label": [], "domain": []}``, the domain being the annotator."""

    train: list[dict[str, Tensor]]
    meta: list[dict[str, Tensor]]
    test: dict[str, Tensor]


def noisy_digits(
    annotators: int, unreliable: int, flipped: float, meta: int, test: int, seed: int
) -> Digits:
    """The digits, split and labelled; all is a function of the seed.

    Args:
        annotators: how many share the training images evenly.
        unreliable: how many of them, the last ones, flip labels.
        flipped: the share of their labels that becomes another digit.
        meta: clean images for the meta set.
        test: clean images for the test set.
        seed: of split and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=generator)
    image = torch.tensor(images, dtype=torch.float32)[order] / 16
    label = torch.tensor(labels)[order]
    domain = torch.arange(len(label)) % annotators
    noisy = label.clone()
    in_train = torch.arange(len(label)) >= meta + test
    for annotator in range(annotators - unreliable, annotators):
        mine = (in_train & (domain == annotator)).nonzero().squeeze(1)
        chosen = mine[torch.randperm(len(mine), generator=generator)[: round(flipped * len(mine))]]
        shift = torch.randint(1, 10, (len(chosen),), generator=generator)
        noisy[chosen] = (label[chosen] + shift) % 10

    def rows(start: int, stop: int, labels: Tensor) -> list[dict[str, Tensor]]:
        return [
            {"image": image[i], "label": labels[i], "domain": domain[i]} for i in range(start, stop)
        ]

    return Digits(
        train=rows(meta + test, len(label), noisy),
        meta=rows(0, meta, label),
        test=stack(rows(meta, meta + test, label)),
    )


def stack(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch of rows."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
