"""Images of a batch as the forward call of their backbone's family takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dreamprm.models.families import Family

Images = Sequence[Sequence[dict[str, Tensor]]]  # of every row: what was read of its images


def _cat(name: str, images: Images) -> Tensor:
    """One after another, whichever row they are of."""
    return torch.cat([image[name] for row in images for image in row])


def _pad_tiles(name: str, images: Images) -> Tensor:
    """[images, tiles, …], padded with zeros to the most tiles of an image."""
    return pad_sequence([image[name][0] for row in images for image in row], batch_first=True)


def _pad_rows(name: str, images: Images) -> Tensor:
    """[rows, tiles, …], padded with zeros to the most tiles of a row."""
    (like, *_) = [image[name][0] for row in images for image in row]
    return pad_sequence(
        [torch.cat([like[:0], *(image[name][0] for image in row)]) for row in images],
        batch_first=True,
    )


def _count(name: str, images: Images) -> Tensor:
    """The number of images of every row that has any."""
    return torch.tensor([len(row) for row in images if row])


JOINS: dict[str, Callable[[str, Images], Tensor]] = {
    "cat": _cat,
    "pad_tiles": _pad_tiles,
    "pad_rows": _pad_rows,
    "count": _count,
}


class FamilyImages:
    """Reads images as a backbone's family does (``dreamprm.models.encoding.ImageReader``)."""

    def __init__(self, family: Family, processor: Any, tokenizer: Any, config: Any) -> None:
        self.family, self.processor, self.config = family, processor, config
        self.placeholder: str = tokenizer.convert_ids_to_tokens(config.image_token_id)
        self.around = family.around

    def read(self, image: Image.Image, alone: bool) -> tuple[str, dict[str, Tensor]]:
        """One image: the text in its place, and what the image processor makes of it."""
        # An image in company is read twice and taken once: only so does the processor know.
        together = [image] if alone or not self.family.alone_differs else [image, image]
        found = self.processor(images=[together], return_tensors="pt", **self.family.options)
        tensors = {name: found[name] for name in self.family.inputs}
        if len(together) > 1:
            tensors = {name: tensor[:1] for name, tensor in tensors.items()}
        return self.family.text(self.placeholder, found, self.config, self.processor), tensors

    def inputs(self, input_ids: Tensor, images: Images) -> dict[str, Tensor]:
        """What the forward call takes besides the tokens."""
        found = {}
        if self.family.token_types:
            found["mm_token_type_ids"] = (input_ids == self.config.image_token_id).int()
        if any(images):
            found |= {name: JOINS[join](name, images) for name, join in self.family.inputs.items()}
        return found
