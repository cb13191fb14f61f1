"""Digits labelled by annotators, some of whom are often wrong: whom is the classifier to trust?

The images are scikit-learn's handwritten digits (1,797 real scans of 8×8 pixels). The training
labels come from several annotators; of the unreliable ones, a share is flipped to another digit.
The upper level learns from a small clean meta set whom to trust.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamprm.config.checking import check_numbers
from dreamprm.errors import UserError
from dreamprm.problems.noisy_labels import DigitClassifier, LabelTrust
from dreamprm.run_directory.opening import RunDirectory
from dreamprm.tasks.columns import Columns
from dreamprm.tasks.config import RunConfig
from dreamprm.tasks.corrections import CORRECTIONS
from dreamprm.tasks.mnist import Images, accuracy, flip_labels, scikit_digits
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

    return ReweightingTask(
        config,
        model=lambda: nn.Sequential(
            nn.Linear(64, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10)
        ),
        lower=DigitClassifier,
        upper=LabelTrust,
        train=data.train,
        meta=data.meta,
        group="annotator",
        truth=data.truth.tolist(),
        validate=lambda network: {"accuracy": accuracy(network, data.test)},
        words=WORDS,
    )


@dataclass(frozen=True)
class Digits:
    """Images [n, 64] and labels [n]; of the training images also who labelled them, and
    whether rightly. ``truth``, [n], is what their labels should be: nothing is trained on it."""

    train: Columns
    truth: Tensor
    meta: Columns
    test: Images


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
    digits = scikit_digits()
    if meta + test >= len(digits):
        raise UserError(
            f"meta_images {meta} and test_images {test} leave none of {len(digits)} to train on"
        )
    digits = digits[torch.randperm(len(digits), generator=generator)]
    annotator = torch.arange(len(digits)) % annotators
    noisy = digits.label
    in_train = torch.arange(len(digits)) >= meta + test
    for each in range(annotators - unreliable, annotators):
        mine = (in_train & (annotator == each)).nonzero().squeeze(1)
        noisy = flip_labels(noisy, mine, flipped, generator)
    train: dict[str, Tensor | list[str]] = {
        "image": digits.image[meta + test :],
        "label": noisy[meta + test :],
        "annotator": [f"annotator-{each}" for each in annotator[meta + test :].tolist()],
        "clean": (noisy == digits.label)[meta + test :],
    }
    clean = Columns({"image": digits.image[:meta], "label": digits.label[:meta]})
    truth = digits.label[meta + test :]
    return Digits(Columns(train), truth, clean, digits[meta : meta + test])
