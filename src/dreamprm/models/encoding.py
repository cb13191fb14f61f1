"""From trajectories to model inputs: token sequences, where they are read, labels, images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamprm.data.images import read_image
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.layouts import LAYOUTS, ImageReader

IMAGE_CACHE_BYTES = 256 * 2**20


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
        layout: a name of ``dreamprm.models.layouts``.
        answer: the id of the token that answers every step, for the layout ``turns``.
        system: the system message of the layouts that are chats; None for none.
    """

    def __init__(
        self,
        tokenizer: Any,
        images: ImageReader | None,
        step_marker: str,
        domains: Sequence[str] = (),
        layout: str = "markers",
        answer: int | None = None,
        system: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.images = images
        self.domains = tuple(domains)
        self._rows = LAYOUTS[layout](tokenizer, images, step_marker, answer, system)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._read: OrderedDict[tuple[Path, bool], tuple[list[int], dict[str, Tensor]]] = (
            OrderedDict()
        )
        self._image_bytes = 0
        self._tokens: dict[tuple[Path, bool], list[int]] = {}

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
                "images=ignore leaves them out (in a config data.images, else --images)"
            )
        return self._rows(trajectory, self._image_tokens(trajectory))

    def prompt(self, question: Trajectory) -> tuple[list[int], list[dict[str, Tensor]]]:
        """What a generator answers: a user turn of the chat template, its steps left out.

        Without a chat template: the images, the question and a blank line.

        Returns:
            Token ids up to where the answer begins, and the tensors of the images.

        Raises:
            UserError: an image is missing or cannot be read, or the backbone reads no images.
        """
        ids = self.rows(replace(question, steps=()))[-1][0]
        if self.tokenizer.chat_template:
            ids = self._rows.user_turn(question.question, self._image_tokens(question))
        return ids, self._image_tensors(question)

    def __call__(self, trajectories: Sequence[Trajectory], pixels: bool = True) -> dict[str, Any]:
        """One batch of b trajectories in R rows, of L tokens and S steps at most.

        A trajectory is one row, and in the layout ``prefixes`` as many as it has steps.

        Args:
            trajectories: of the batch.
            pixels: whether ``inputs`` has what the images' family adds.

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
        first = 0
        for index, of_one in enumerate(encoded):
            places = [(first + r, p) for r, (_, found) in enumerate(of_one) for p in found]
            first += len(of_one)
            for column, (row, position) in enumerate(places):
                step_rows[index, column] = row
                step_positions[index, column] = position
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.images is not None and pixels:
            images = [
                tensors
                for trajectory, of_one in zip(trajectories, encoded, strict=True)
                for tensors in [self._image_tensors(trajectory)] * len(of_one)
            ]
            inputs |= self.images.inputs(input_ids, images)
        return {
            "inputs": inputs,
            "step_rows": step_rows,
            "step_positions": step_positions,
            **self.labels(trajectories),
        }

    def labels(self, trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
        """What a batch of b trajectories, of S steps at most, says beside what the backbone reads.

        Returns:
            ``step_mask``, ``step_labels``, ``label_mask``, ``outcome``, ``domain`` and
            ``question`` of :meth:`__call__`.
        """
        lengths = [len(trajectory.steps) for trajectory in trajectories]
        steps = max(1, *lengths)
        labels = [
            [*(trajectory.step_labels or ()), *[None] * steps][:steps]
            for trajectory in trajectories
        ]
        questions: dict[Any, int] = {}
        for trajectory in trajectories:
            questions.setdefault(trajectory.question_key, len(questions))
        return {
            "step_mask": torch.arange(steps) < torch.tensor(lengths)[:, None],
            "step_labels": torch.tensor([[x or 0.0 for x in row] for row in labels]),
            "label_mask": torch.tensor([[x is not None for x in row] for row in labels]),
            "outcome": torch.tensor(
                [float("nan") if t.outcome is None else float(t.outcome) for t in trajectories]
            ),
            "domain": torch.tensor([self._domain(t) for t in trajectories]),
            "question": torch.tensor([questions[t.question_key] for t in trajectories]),
        }

    def _domain(self, trajectory: Trajectory) -> int:
        return self.domains.index(trajectory.domain) if trajectory.domain in self.domains else -1

    def _image_tokens(self, trajectory: Trajectory) -> list[list[int]]:
        """The tokens of each image, which stay known when its tensors are forgotten."""
        return [
            self._tokens[path, alone]
            if (path, alone) in self._tokens
            else self._image(path, alone, trajectory)[0]
            for path, alone in _images_of(trajectory)
        ]

    def _image_tensors(self, trajectory: Trajectory) -> list[dict[str, Tensor]]:
        """The tensors of each image."""
        return [self._image(path, alone, trajectory)[1] for path, alone in _images_of(trajectory)]

    def _image(
        self, path: Path, alone: bool, trajectory: Trajectory
    ) -> tuple[list[int], dict[str, Tensor]]:
        """The tokens and tensors of one image file, from the cache where they are there."""
        key = path, alone
        if key in self._read:
            self._read.move_to_end(key)
            return self._read[key]
        try:
            image = read_image(path)
            text, tensors = self.images.read(image, alone)  # type: ignore[union-attr]
        except UserError as error:
            raise UserError(f"trajectory {trajectory.id!r}: {error}") from error
        except ValueError as error:  # a shape that the processor refuses, such as 10000 × 10
            raise UserError(
                f"trajectory {trajectory.id!r}: the image processor refuses {path} of "
                f"{image.width} x {image.height} pixels: {error}"
            ) from error
        self._read[key] = entry = self._rows.special(text), tensors
        self._tokens[key] = entry[0]
        self._image_bytes += _size(entry)
        while self._image_bytes > IMAGE_CACHE_BYTES and len(self._read) > 1:
            self._image_bytes -= _size(self._read.popitem(last=False)[1])
        return entry


def _images_of(trajectory: Trajectory) -> list[tuple[Path, bool]]:
    """Each image, and whether it is the only one."""
    return [(path, len(trajectory.images) == 1) for path in trajectory.images]


def _size(entry: tuple[list[int], dict[str, Tensor]]) -> int:
    return sum(tensor.nbytes for tensor in entry[1].values())
