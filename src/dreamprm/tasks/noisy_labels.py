"""Digits labelled by annotators, some of whom are often wrong: whom is the classifier to trust?

The images are scikit-learn's handwritten digits (1,797 real scans of 8×8 pixels). The training
labels come from several annotators; of the unreliable ones, a share is flipped to another digit.
The upper level learns from a small clean meta set whom to trust.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dreamprm.config.checking import check_numbers
from dreamprm.errors import UserError
from dreamprm.problems.noisy_labels import AnnotatorWeighting, DigitClassifier
from dreamprm.run_directory.opening import RunDirectory
from dreamprm.tasks.columns import Columns
from dreamprm.tasks.config import RunConfig
from dreamprm.tasks.corrections import CORRECTIONS
from dreamprm.tasks.reweighting import ReweightingTask
from dreamprm.words import Metric, Words

WORDS = Words(
    group="annotator",
    sample="image",
    metrics={
        "accuracy": Metric("accuracy", "share of test images whose digit is told right"),
        **CORRECTIONS,
    },
    tiles=("accuracy",),
)


@dataclass
class Config(RunConfig):
    """One run on the digits."""

    annotators: int = 6  # who share the training images evenly
    unreliable: int = 4  # of them, the last ones, flip labels
    flipped: float = 0.4  # share of their labels that becomes another digit
    meta_images: int = 100  # clean, for the upper level
    test_images: int = 600  # clean
    hidden: int = 256  # width of the classifier

    def check(self, where: str) -> None:
        """Refuses values that are out of range."""
        super().check(where)
        check_numbers(self, where, 1, ("annotators", "meta_images", "test_images", "hidden"))
        check_numbers(self, where, 0, ("unreliable",))
        if self.unreliable > self.annotators:
            raise UserError(
                f"{where}: unreliable is {self.unreliable}, expected at most annotators, "
                f"{self.annotators}"
            )
        if not 0 <= self.flipped <= 1:
            raise UserError(f"{where}: flipped is {self.flipped}, expected 0 to 1")


def build(config: Config, run: RunDirectory) -> ReweightingTask:
    """The digits, a network of one hidden layer, and its accuracy on the test images."""
    data = noisy_digits(
        config.annotators,
        config.unreliable,
        config.flipped,
        config.meta_images,
        config.test_images,
        config.seed,
    )

    def accuracy(network: nn.Module) -> dict[str, float]:
        image, label = data.test["image"], data.test["label"]
        device = next(network.parameters()).device
        right = network(image.to(device)).argmax(-1).cpu() == label
        return {"accuracy": right.float().mean().item()}

    return ReweightingTask(
        config,
        model=lambda: nn.Sequential(
            nn.Linear(64, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10)
        ),
        lower=DigitClassifier,
        upper=AnnotatorWeighting,
        train=data.train,
        meta=data.meta,
        group="annotator",
        truth=data.truth.tolist(),
        validate=accuracy,
        words=WORDS,
    )


@dataclass(frozen=True)
class Digits:
    """Images [n, 64] and labels [n]; of the training images also who labelled them, and
    whether rightly. ``truth``, [n], is what their labels should be: nothing is trained on it."""

    train: Columns
    truth: Tensor
    meta: Columns
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

    Raises:
        UserError: nothing is left to train on.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = load_digits(return_X_y=True)
    if meta + test >= len(labels):
        raise UserError(
            f"meta_images {meta} and test_images {test} leave none of {len(labels)} to train on"
        )
    order = torch.randperm(len(labels), generator=generator)
    image = torch.tensor(images, dtype=torch.float32)[order] / 16
    label = torch.tensor(labels)[order]
    annotator = torch.arange(len(label)) % annotators
    noisy = label.clone()
    in_train = torch.arange(len(label)) >= meta + test
    for each in range(annotators - unreliable, annotators):
        mine = (in_train & (annotator == each)).nonzero().squeeze(1)
        chosen = mine[torch.randperm(len(mine), generator=generator)[: round(flipped * len(mine))]]
        shift = torch.randint(1, 10, (len(chosen),), generator=generator)
        noisy[chosen] = (label[chosen] + shift) % 10
    names = [f"annotator-{each}" for each in annotator[meta + test :].tolist()]

    def clean(start: int, stop: int) -> dict[str, Tensor]:
        return {"image": image[start:stop], "label": label[start:stop]}

    train: dict[str, Tensor | list[str]] = {
        "image": image[meta + test :],
        "label": noisy[meta + test :],
        "annotator": names,
        "clean": (noisy == label)[meta + test :],
    }
    return Digits(
        Columns(train), label[meta + test :], Columns(clean(0, meta)), clean(meta, meta + test)
    )
