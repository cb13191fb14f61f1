"""Data hyper-cleaning: half of the training labels are wrong; which, says a clean validation set.

The field's standard small bi-level benchmark (Franceschi et al. 2017, arXiv 1703.01785): the lower
level fits a linear classifier or a small network to MNIST images of which each has a weight, the
upper one learns the weights from clean images. At the end the test images tell how good the
classifier is, and the weights which labels were taken for wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dreamprm.config.checking import check_choices, check_numbers
from dreamprm.errors import UserError
from dreamprm.problems.noisy_labels import DigitClassifier, LabelTrust
from dreamprm.run_directory.opening import RunDirectory
from dreamprm.tasks.columns import Columns
from dreamprm.tasks.config import RunConfig
from dreamprm.tasks.corrections import CORRECTIONS
from dreamprm.tasks.mnist import Images, accuracy, flip_labels, load_images, scikit_digits
from dreamprm.tasks.reweighting import ReweightingTask
from dreamprm.words import Metric, Words

log = logging.getLogger("dreamprm")

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda pixels: nn.Linear(pixels, 10),
    "mlp": lambda pixels: nn.Sequential(nn.Linear(pixels, 300), nn.ReLU(), nn.Linear(300, 10)),
}

WORDS = Words(
    group="label",
    sample="image",
    meta="validation set",
    metrics={
        "accuracy": Metric("test accuracy", "share of test images whose digit is told right"),
        "f1": Metric("F1 of the cleaner", "of finding the wrong labels by their low weights"),
        **CORRECTIONS,
        "validation_accuracy": Metric("validation accuracy", "the same of the validation images"),
    },
    tiles=("accuracy", "f1"),
)


@dataclass
class Config(RunConfig):
    """One run on MNIST, or on scikit-learn's digits where MNIST cannot be had."""

    # With MNIST's four files, train-images-idx3-ubyte.gz and so on; null for the hub's.
    folder: str | None = None
    hub: str | None = "ylecun/mnist"  # of the Hugging Face hub; null for scikit-learn's digits
    train_images: int = 5000
    validation_images: int = 5000  # clean, for the upper level
    test_images: int = 10000  # clean, looked at when a run has ended
    wrong: float = 0.5  # share of the training labels that is another digit
    network: str = "linear"  # or mlp, with one hidden layer of 300
    # A training label is taken for wrong where its weight is less. 1 is what a label counts of
    # which nothing is learned: of instance_table with sigmoid, w = 2σ(α), it is σ(α) = 1/2, the
    # usual rule; where weights are normalised, it is their mean.
    wrong_below: float = 1.0

    # Where the data lie may change: what they are is in the checkpoint.
    FREE: ClassVar[tuple[str, ...]] = (*RunConfig.FREE, "folder", "hub")

    def check(self, where: str) -> None:
        """Refuses values that are out of range."""
        super().check(where)
        check_numbers(self, where, 1, ("train_images", "validation_images", "test_images"))
        check_choices(self, where, {"network": NETWORKS})
        if not 0 <= self.wrong <= 1:
            raise UserError(f"{where}: wrong is {self.wrong}, expected 0 to 1")


def build(config: Config, run: RunDirectory) -> ReweightingTask:
    """The images, a classifier, its accuracy, and how well the weights tell wrong labels."""
    data = noisy_images(config)
    wrong = ~data.clean
    return ReweightingTask(
        config,
        model=lambda: NETWORKS[config.network](data.test.image.shape[1]),
        lower=DigitClassifier,
        upper=LabelTrust,
        train=Columns({"image": data.train.image, "label": data.train.label, "clean": data.clean}),
        meta=Columns({"image": data.validation.image, "label": data.validation.label}),
        group="clean",
        truth=data.truth.tolist(),
        validate=lambda model: {"validation_accuracy": accuracy(model, data.validation)},
        measure=lambda model: {
            "accuracy": accuracy(model, data.test),
            "validation_accuracy": accuracy(model, data.validation),
        },
        measure_weights=lambda weights: {"f1": f1(weights < config.wrong_below, wrong)},
        words=WORDS,
    )


@dataclass(frozen=True)
class NoisyImages:
    """The three parts of the data; of the training labels which are right, ``clean``, [n], and
    what they should be, ``truth``, [n]."""

    train: Images
    clean: Tensor
    truth: Tensor
    validation: Images
    test: Images


def noisy_images(config: Config) -> NoisyImages:
    """The images, split and labelled; all is a function of the seed.

    Raises:
        UserError: the data are not as they must be, or there are fewer than the config asks for.
    """
    generator = torch.Generator().manual_seed(config.seed)
    train, validation, test = config.train_images, config.validation_images, config.test_images
    found = load_images(config.folder, config.hub)
    if found is None:
        digits = scikit_digits()
        share = min(1, len(digits) / (train + validation + test))
        train, validation = max(1, int(share * train)), max(1, int(share * validation))
        test = min(test, len(digits) - train - validation)
        log.warning(
            "no MNIST, neither in a folder nor on the hub: scikit-learn's %d digits in its place, "
            "%d for training, %d for validation, %d for the test; folder= says where MNIST is",
            *(len(digits), train, validation, test),
        )
        digits = digits[torch.randperm(len(digits), generator=generator)]
        found = {"train": digits[test:], "test": digits[:test]}
    for part, asked, keys in (
        ("train", train + validation, "train_images and validation_images"),
        ("test", test, "test_images"),
    ):
        if asked > len(found[part]):
            raise UserError(
                f"{keys}: {asked:,} asked for, of {len(found[part]):,} images there are"
            )
    order = torch.randperm(len(found["train"]), generator=generator)
    of_test = torch.randperm(len(found["test"]), generator=generator)[:test]
    clean = found["train"][order[:train]]
    label = flip_labels(clean.label, torch.arange(train), config.wrong, generator)
    return NoisyImages(
        Images(clean.image, label),
        label == clean.label,
        clean.label,
        found["train"][order[train : train + validation]],
        found["test"][of_test],
    )


def f1(predicted: Tensor, wrong: Tensor) -> float:
    """F1 of telling wrong labels.

    Args:
        predicted: taken for wrong, [n].
        wrong: are wrong, [n].

    Returns:
        2 · hits / (predicted + wrong); 1 where there is nothing to find and nothing is found.
    """
    hits, both = int((predicted & wrong).sum()), int(predicted.sum() + wrong.sum())
    return 2 * hits / both if both else 1.0
