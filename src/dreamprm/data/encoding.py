"""From trajectories to model inputs: a token sequence per solution, a marker after every step.

Layout: the images, the question, a blank line, then every step followed by the marker token. The
question and each step are tokenised on their own, so that no later step can change the tokens of
an earlier one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

IMAGE_CACHE_BYTES = 256 * 2**20

VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


class Encoder:
    """Turns trajectories into one padded batch.

    The tokenizer and the image processor are used side by side instead of through the joint
    processor of the Qwen-VL families, which cannot be built without torchvision; an image
    placeholder is repeated grid_t · grid_h · grid_w / merge_size² times, as that processor does.

    Args:
        tokenizer: a Hugging Face tokenizer that knows ``step_marker`` as one token.
        image_processor: a Qwen-VL image processor, or None for a text-only backbone.
        step_marker: the token that ends each step.
        domains: names whose position is the ``domain`` index of a trajectory; empty outside
            training, where domains do not matter.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any | None,
        step_marker: str,
        domains: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.domains = tuple(domains)
        self.marker_id: int = tokenizer.convert_tokens_to_ids(step_marker)
        if self.marker_id is None or self.marker_id == tokenizer.unk_token_id:
            raise UserError(f"the tokenizer has no token {step_marker!r} to mark the end of a step")
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.vision_ids: list[int] = (
            tokenizer.convert_tokens_to_ids([VISION_START, IMAGE_PAD, VISION_END])
            if image_processor is not None
            else []
        )
        self._images: OrderedDict[Path, tuple[Tensor, Tensor]] = OrderedDict()
        self._image_bytes = 0

    def tokens(self, trajectory: Trajectory) -> tuple[list[int], list[int]]:
        """Token ids of one trajectory and the positions of its step markers.

        Raises:
            UserError: an image is missing or cannot be read, or the backbone reads no images.
        """
        if trajectory.images and self.image_processor is None:
            raise UserError(
                f"trajectory {trajectory.id!r} has images, but the backbone reads text only; "
                "set data.images=ignore to train on the text alone"
            )
        ids: list[int] = []
        for path in trajectory.images:
            start, image, end = self.vision_ids
            ids += [start, *[image] * self._image_tokens(path), end]
        ids += self._text(f"{trajectory.question}\n\n")
        positions = []
        for step in trajectory.steps:
            ids += self._text(step)
            positions.append(len(ids))
            ids.append(self.marker_id)
        return ids, positions

    def _text(self, text: str) -> list[int]:
        # A marker or an image placeholder that stands in somebody's text is text.
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def __call__(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """One batch of b trajectories, L tokens and S steps at most.

        Returns:
            ``inputs``: what the backbone takes (``input_ids`` and ``attention_mask`` [b, L],
            right-padded; for a vision-language one ``mm_token_type_ids`` [b, L] and, where there
            are images, ``pixel_values`` and ``image_grid_thw``); ``step_positions`` [b, S] and
            ``step_mask`` [b, S]; ``step_labels`` [b, S] with ``label_mask`` [b, S]; ``outcome``
            [b] (NaN where unknown); ``domain`` [b]; ``question`` [b], equal for the solutions of
            one question.
        """
        encoded = [self.tokens(trajectory) for trajectory in trajectories]
        length = max(len(ids) for ids, _ in encoded)
        steps = max(1, max(len(positions) for _, positions in encoded))
        b = len(trajectories)
        input_ids = torch.full((b, length), self.pad_id)
        attention_mask = torch.zeros(b, length, dtype=torch.long)
        step_positions = torch.zeros(b, steps, dtype=torch.long)
        step_mask = torch.zeros(b, steps, dtype=torch.bool)
        step_labels = torch.zeros(b, steps)
        label_mask = torch.zeros(b, steps, dtype=torch.bool)
        questions: dict[Any, int] = {}
        for row, (trajectory, (ids, positions)) in enumerate(
            zip(trajectories, encoded, strict=True)
        ):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
            step_positions[row, : len(positions)] = torch.tensor(positions, dtype=torch.long)
            step_mask[row, : len(positions)] = True
            for column, label in enumerate(trajectory.step_labels or ()):
                if label is not None:
                    step_labels[row, column] = label
                    label_mask[row, column] = True
            questions.setdefault(trajectory.question_key, len(questions))
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.image_processor is not None:
            inputs["mm_token_type_ids"] = (input_ids == self.vision_ids[1]).int()
            images = [self._image(path) for t in trajectories for path in t.images]
            if images:
                inputs["pixel_values"] = torch.cat([pixels for pixels, _ in images])
                inputs["image_grid_thw"] = torch.cat([grid for _, grid in images])
        return {
            "inputs": inputs,
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

    def _image_tokens(self, path: Path) -> int:
        _, grid = self._image(path)
        return int(grid.prod()) // self.image_processor.merge_size**2  # type: ignore[union-attr]

    def _image(self, path: Path) -> tuple[Tensor, Tensor]:
        """Patches [n, p] and grid [1, 3] of one image file, from the cache where it is there."""
        if path in self._images:
            self._images.move_to_end(path)
            return self._images[path]
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            raise UserError(f"cannot read image {path}: {error}") from error
        features = self.image_processor(images=[image], return_tensors="pt")  # type: ignore[misc]
        entry = (features["pixel_values"], features["image_grid_thw"])
        self._images[path] = entry
        self._image_bytes += entry[0].nbytes
        while self._image_bytes > IMAGE_CACHE_BYTES and len(self._images) > 1:
            _, (pixels, _) = self._images.popitem(last=False)
            self._image_bytes -= pixels.nbytes
        return entry
