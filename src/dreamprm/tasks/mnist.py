"""Images of digits with their labels: MNIST from a folder or the hub, or scikit-learn's digits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dreamprm.data.idx import read_idx
from dreamprm.data.rows import HUB, hub_dataset
from dreamprm.errors import UserError

log = logging.getLogger("dreamprm")

PARTS = ("train", "test")
FILES = {"train": "train", "test": "t10k"}  # how the names of MNIST's files start


@dataclass(frozen=True)
class Images:
    """n images, float in 0 to 1, [n, pixels], and their digits, [n]."""

    image: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, places: Tensor | slice) -> Images:
        return Images(self.image[places], self.label[places])


def load_images(folder: str | None, hub: str | None) -> dict[str, Images] | None:
    """MNIST: the images to train on, and those to test on.

    Args:
        folder: with MNIST's four gzipped files; None to take the hub's.
        hub: name of the data set on the Hugging Face hub; None for none.

    Returns:
        ``"train"`` and ``"test"``; None where no folder is given and the hub does not have it
        either, which the log says.

    Raises:
        UserError: the folder or one of its files is not as it must be, or the hub's data set holds
            something else.
    """
    if folder:
        return {part: mnist_of_folder(Path(folder), part) for part in PARTS}
    if not hub:
        return None
    try:
        found = {part: hub_dataset(f"{HUB}{hub}:{part}") for part in PARTS}
    except UserError as error:
        log.warning("%s", error)
        return None
    return {part: _of_hub(found[part], f"{hub}, split {part!r}") for part in PARTS}


def mnist_of_folder(folder: Path, part: str) -> Images:
    """A part of MNIST from its two files in a folder.

    Args:
        folder: with ``train-images-idx3-ubyte.gz`` and the others by their usual names.
        part: ``train`` or ``test``.

    Raises:
        UserError: a file is not as it must be, or the two do not go together.
    """
    images, labels = (
        folder / f"{FILES[part]}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")
    )
    return _checked(read_idx(images, 3), read_idx(labels, 1), f"{images} and {labels.name}")


def scikit_digits() -> Images:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels."""
    images, labels = load_digits(return_X_y=True)
    return Images(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))


def flip_labels(label: Tensor, places: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The labels, of which a share of those at ``places`` is another digit, each as likely.

    Args:
        label: digits, [n].
        places: of whose labels some are flipped, [m].
        share: flips just round(share · m) of them.
        generator: of the draws.
    """
    chosen = places[torch.randperm(len(places), generator=generator)[: round(share * len(places))]]
    shift = torch.randint(1, 10, (len(chosen),), generator=generator)
    flipped = label.clone()
    flipped[chosen] = (label[chosen] + shift) % 10
    return flipped


def accuracy(network: nn.Module, data: Images) -> float:
    """The share of images whose digit a network tells right."""
    device = next(network.parameters()).device
    right = network(data.image.to(device)).argmax(-1).cpu() == data.label
    return right.float().mean().item()


def _of_hub(rows: Any, where: str) -> Images:
    if not {"image", "label"} <= set(rows.column_names):
        raise UserError(f"{where} has columns {rows.column_names}, expected image and label")
    images = [np.asarray(picture) for picture in rows["image"]]
    shapes = sorted({image.shape for image in images})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise UserError(f"{where} has images of shapes {shapes[:3]}, expected one size, in grey")
    return _checked(np.stack(images), np.array(rows["label"]), where)


def _checked(images: np.ndarray, labels: np.ndarray, where: str) -> Images:
    """Of bytes [n, height, width] and digits [n]."""
    if len(images) != len(labels):
        raise UserError(f"{where}: {len(images):,} images and {len(labels):,} labels")
    if len(labels) and not (labels.min() >= 0 and labels.max() <= 9):
        raise UserError(f"{where}: labels are {labels.min()} to {labels.max()}, expected 0 to 9")
    image = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)) / 255
    return Images(image, torch.from_numpy(labels.astype(np.int64)))
