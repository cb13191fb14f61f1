"""From trajectories to model inputs: a token sequence per solution, a marker after every step.

Two layouts:

- ``markers``: the images, the question, a blank line, then every step followed by the marker
  token; a score is read at each marker. The question and each step are tokenised on their own, so
  that no later step can change the tokens of an earlier one.
- ``prefixes``: the published DreamPRM layout. Every prefix of the steps is a row of its own: one
  user turn of the tokenizer's chat template, with the images, the question and the steps so far;
  the score is read at its last token. Without a chat template a prefix is the ``markers`` layout
  cut after its last marker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

IMAGE_CACHE_BYTES = 256 * 2**20

# Stands for the text while a chat template is rendered: no template changes it, nobody types it.
_TEXT = "\ue000text\ue000"


class ImageReader(Protocol):
    """What differs between the families of vision-language backbones, for the encoder.

    Attributes:
        placeholder: the text that a chat template has in the place of an image.
        around: texts before and after an image outside a chat template.
    """

    placeholder: str
    around: tuple[str, str]

    def read(self, image: Image.Image, alone: bool) -> tuple[str, dict[str, Tensor]]:
        """One image: the text in its place, and what the image processor makes of it.

        ``alone`` says that its question has no other image, which some families ask for.
        """

    def inputs(
        self, input_ids: Tensor, images: Sequence[Sequence[dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """What the forward call takes besides the tokens, from the images of every row."""


class Encoder:
    """Turns trajectories into one padded batch.

    The tokenizer and the image processor are used side by side instead of through the families'
    joint processors, most of which cannot be built without torchvision.

    Args:
        tokenizer: a Hugging Face tokenizer that knows ``step_marker`` as one token.
        images: reads images as the backbone's family does; None for a text-only backbone.
        step_marker: the token that ends each step.
        domains: names whose position is the ``domain`` index of a trajectory; empty outside
            training, where domains do not matter.
        layout: ``"markers"`` or ``"prefixes"``.
    """

    def __init__(
        self,
        tokenizer: Any,
        images: ImageReader | None,
        step_marker: str,
        domains: Sequence[str] = (),
        layout: str = "markers",
    ) -> None:
        self.tokenizer = tokenizer
        self.images = images
        self.domains = tuple(domains)
        self.chat = layout == "prefixes" and bool(tokenizer.chat_template)
        self.prefixes = layout == "prefixes"
        self.marker_id: int = tokenizer.convert_tokens_to_ids(step_marker)
        if self.marker_id is None or self.marker_id == tokenizer.unk_token_id:
            raise UserError(f"the tokenizer has no token {step_marker!r} to mark the end of a step")
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._turns: dict[int, tuple[list[list[int]], list[int]]] = {}
        self._read: OrderedDict[tuple[Path, bool], tuple[list[int], dict[str, Tensor]]] = (
            OrderedDict()
        )
        self._image_bytes = 0

    def tokens(self, trajectory: Trajectory) -> tuple[list[int], list[int]]:
        """Token ids of a trajectory's longest row and the positions of the scores in it.

        Raises:
            UserError: an image is missing or cannot be read, or the backbone reads no images.
        """
        return self.rows(trajectory)[-1]

    def rows(self, trajectory: Trajectory) -> list[tuple[list[int], list[int]]]:
        """Token ids of every row of one trajectory and the positions of the scores in it.

        Raises:
            UserError: an image is missing or cannot be read, or the backbone reads no images.
        """
        if trajectory.images and self.images is None:
            raise UserError(
                f"trajectory {trajectory.id!r} has images, but the backbone reads text only; "
                "set data.images=ignore to train on the text alone"
            )
        if self.chat and trajectory.steps:
            return [self._chat_turn(trajectory, n + 1) for n in range(len(trajectory.steps))]
        ids: list[int] = []
        for image, _ in self._images_of(trajectory):
            before, after = self.images.around  # type: ignore[union-attr]
            ids += self._special(before) + image + self._special(after)
        ids += self._text(f"{trajectory.question}\n\n")
        positions = []
        for step in trajectory.steps:
            ids += self._text(step)
            positions.append(len(ids))
            ids.append(self.marker_id)
        if self.prefixes and positions:
            return [(ids[: end + 1], [end]) for end in positions]
        return [(ids, positions)]

    def prompt(self, question: Trajectory) -> tuple[list[int], list[dict[str, Tensor]]]:
        """What a generator answers: a user turn of the chat template, its steps left out.

        Without a chat template: the images, the question and a blank line.

        Returns:
            Token ids up to where the answer begins, and the tensors of the images.

        Raises:
            UserError: an image is missing or cannot be read, or the backbone reads no images.
        """
        if self.tokenizer.chat_template and (self.images is not None or not question.images):
            ids = self._chat_turn(question, 0)[0]
        else:
            ids = self.rows(replace(question, steps=()))[-1][0]
        return ids, [tensors for _, tensors in self._images_of(question)]

    def _chat_turn(self, trajectory: Trajectory, steps: int) -> tuple[list[int], list[int]]:
        """One user turn with the first steps, and the position of its last token."""
        pieces, after = self._turn(len(trajectory.images))
        ids = list(pieces[0])
        for (image, _), piece in zip(self._images_of(trajectory), pieces[1:], strict=True):
            ids += image + piece
        # As in the published data: the question, then the response so far, blank lines between.
        ids += self._text("\n\n".join([trajectory.question, *trajectory.steps[:steps]])) + after
        return ids, [len(ids) - 1]

    def _turn(self, images: int) -> tuple[list[list[int]], list[int]]:
        """The chat template's tokens before, between and after the images, and after the text."""
        if images not in self._turns:
            content: Any = _TEXT
            if self.images is not None:
                content = [{"type": "image"}] * images + [{"type": "text", "text": _TEXT}]
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            before, _, after = rendered.partition(_TEXT)
            pieces = before.split(self.images.placeholder) if self.images is not None else [before]
            if len(pieces) != images + 1:
                raise UserError(
                    f"the tokenizer's chat template places {len(pieces) - 1} of {images} images "
                    "before the text, expected all of them"
                )
            self._turns[images] = [self._special(piece) for piece in pieces], self._special(after)
        return self._turns[images]

    def _special(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _text(self, text: str) -> list[int]:
        # A marker or an image placeholder that stands in somebody's text is text.
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def __call__(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """One batch of b trajectories in R rows, of L tokens and S steps at most.

        A trajectory is one row in the layout ``markers``, and as many as it has steps in
        ``prefixes``.

        Returns:
            ``inputs``: what the backbone takes (``input_ids`` and ``attention_mask`` [R, L],
            right-padded, and what the images' family adds); ``step_rows`` and ``step_positions``
            [b, S], where each step is read, and ``step_mask`` [b, S]; ``step_labels`` [b, S] with
            ``label_mask`` [b, S]; ``outcome`` [b] (NaN where unknown); ``domain`` [b];
            ``question`` [b], equal for the solutions of one question.
        """
        encoded = [self.rows(trajectory) for trajectory in trajectories]
        rows = [ids for of_one in encoded for ids, _ in of_one]
        length = max(map(len, rows))
        steps = max(1, max(len(t.steps) for t in trajectories))
        b = len(trajectories)
        input_ids = torch.full((len(rows), length), self.pad_id)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        step_rows = torch.zeros(b, steps, dtype=torch.long)
        step_positions = torch.zeros(b, steps, dtype=torch.long)
        step_mask = torch.zeros(b, steps, dtype=torch.bool)
        step_labels = torch.zeros(b, steps)
        label_mask = torch.zeros(b, steps, dtype=torch.bool)
        questions: dict[Any, int] = {}
        first = 0
        for index, (trajectory, of_one) in enumerate(zip(trajectories, encoded, strict=True)):
            places = [(first + r, p) for r, (_, found) in enumerate(of_one) for p in found]
            first += len(of_one)
            for column, (row, position) in enumerate(places):
                step_rows[index, column] = row
                step_positions[index, column] = position
            step_mask[index, : len(places)] = True
            for column, label in enumerate(trajectory.step_labels or ()):
                if label is not None:
                    step_labels[index, column] = label
                    label_mask[index, column] = True
            questions.setdefault(trajectory.question_key, len(questions))
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.images is not None:
            images = [
                [tensors for _, tensors in self._images_of(trajectory)]
                for trajectory, of_one in zip(trajectories, encoded, strict=True)
                for _ in of_one
            ]
            inputs |= self.images.inputs(input_ids, images)
        return {
            "inputs": inputs,
            "step_rows": step_rows,
            "step_positions": step_positions,
            "step_mask": step_mask,
            "step_labels": step_labels,
            "label_mask": label_mask,
            "outcome": torch.tensor(
                [float("nan") if t.outcome is None else float(t.outcome) for t in trajectories]
            ),
            "domain": torch.tensor([self._domain(t) for t in trajectories]),
            "question": torch.tensor([questions[t.question_key] for t in trajectories]),
        }

    def _domain(self, trajectory: Trajectory) -> int:
        return self.domains.index(trajectory.domain) if trajectory.domain in self.domains else -1

    def _images_of(self, trajectory: Trajectory) -> list[tuple[list[int], dict[str, Tensor]]]:
        return [self._image(path, len(trajectory.images) == 1) for path in trajectory.images]

    def _image(self, path: Path, alone: bool) -> tuple[list[int], dict[str, Tensor]]:
        """The tokens and tensors of one image file, from the cache where they are there."""
        key = path, alone
        if key in self._read:
            self._read.move_to_end(key)
            return self._read[key]
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            raise UserError(f"cannot read image {path}: {error}") from error
        text, tensors = self.images.read(image, alone)  # type: ignore[union-attr]
        self._read[key] = entry = self._special(text), tensors
        self._image_bytes += _size(entry)
        while self._image_bytes > IMAGE_CACHE_BYTES and len(self._read) > 1:
            self._image_bytes -= _size(self._read.popitem(last=False)[1])
        return entry


def _size(entry: tuple[list[int], dict[str, Tensor]]) -> int:
    return sum(tensor.nbytes for tensor in entry[1].values())
