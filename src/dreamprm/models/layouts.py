"""How a solution is laid out in tokens, and where its steps are scored.

- ``markers``: the images, the question, a blank line, then every step followed by the marker
  token; a score is read at each marker. The question and each step are tokenised on their own, so
  that no later step can change the tokens of an earlier one.
- ``prefixes``: the published DreamPRM layout. Every prefix of the steps is a row of its own: one
  user turn of the tokenizer's chat template, with the images, the question and the steps so far;
  the score is read at its last token. Without a chat template a prefix is the ``markers`` layout
  cut after its last marker.
- ``turns``: the layout of VisualPRM and DreamPRM-1.5. Every step is a user turn, the first one with
  images and question before it, and is answered by one and the same token; a score is read where
  the answer is about to come.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

Row = tuple[list[int], list[int]]  # token ids, and the positions of the scores in it

# Stand for texts while a chat template is rendered: no template changes them, nobody types them.
_TEXT, _ANSWER = "\ue000text\ue000", "\ue000answer\ue000"


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


def marker_of(tokenizer: Any, text: str) -> int | None:
    """The id of the token that is named so, or that the text is, such as a line break; or None."""
    named = tokenizer.convert_tokens_to_ids(text)
    if named is not None and named != tokenizer.unk_token_id:
        return named
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def add_step_marker(backbone: Any, tokenizer: Any, marker: str) -> None:
    """Makes ``marker`` one token, and the embedding table long enough for it."""
    if marker_of(tokenizer, marker) is not None:
        return
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [marker]}, replace_extra_special_tokens=False
    )
    # Published tables are padded (Qwen2-VL: 151,936 rows for 151,657 tokens), so most need no row.
    if len(tokenizer) > backbone.get_input_embeddings().num_embeddings:
        backbone.resize_token_embeddings(len(tokenizer))


class TokenLayout:
    """The layout ``markers``; and what the others share with it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        images: reads images as the backbone's family does; None for a text-only backbone.
        step_marker: the token that ends each step.
        answer: the token that answers every step.
        system: the system message of a chat; None for none.

    Raises:
        UserError: the tokenizer does not know the marker as one token, or there is no chat to have
            a system message.
    """

    is_chat = False

    def __init__(
        self,
        tokenizer: Any,
        images: ImageReader | None,
        step_marker: str,
        answer: int | None = None,
        system: str | None = None,
    ) -> None:
        self.tokenizer, self.images = tokenizer, images
        self.answer, self.system = answer, system
        marker = marker_of(tokenizer, step_marker)
        if marker is None:
            raise UserError(f"the tokenizer has no token {step_marker!r} to mark the end of a step")
        self.marker = marker
        self._rendered: dict[tuple[int, int], list[list[int]]] = {}
        if system is not None and not (self.is_chat and tokenizer.chat_template):
            raise UserError(
                "model.system is the first message of a chat, for model.readout=conversation or "
                "prefix and a tokenizer with a chat template"
            )

    def __call__(self, trajectory: Trajectory, images: Sequence[list[int]]) -> list[Row]:
        """The rows of one trajectory.

        Args:
            trajectory: a solution.
            images: the tokens of each of its images.
        """
        ids: list[int] = []
        for image in images:
            before, after = self.images.around  # type: ignore[union-attr]
            ids += self.special(before) + image + self.special(after)
        ids += self.text(f"{trajectory.question}\n\n")
        positions = []
        for step in trajectory.steps:
            ids += self.text(step)
            positions.append(len(ids))
            ids.append(self.marker)
        return [(ids, positions)]

    def special(self, text: str) -> list[int]:
        """The tokens of text whose special tokens mean what they are."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def text(self, text: str) -> list[int]:
        """The tokens of somebody's text, in which a marker or a placeholder is text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def turns(self, images: int, users: int) -> list[list[int]]:
        """The chat template's tokens around every image, every user's text and every answer.

        Args:
            images: before the text of the first turn.
            users: turns, with an answer between any two; the last one's is about to come.

        Raises:
            UserError: the template leaves something out, or in another order.
        """
        key = images, users
        if key not in self._rendered:
            turns = ([("user", _TEXT), ("assistant", _ANSWER)] * users)[:-1]
            messages = [self._message(role, text) for role, text in turns]
            if self.images is not None:
                messages[0]["content"] = [{"type": "image"}] * images + messages[0]["content"]
            if self.system is not None:
                messages = [self._message("system", self.system), *messages]
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            words = [_TEXT, _ANSWER]
            if self.images is not None:
                words.append(self.images.placeholder)
            pieces = re.split(f"({'|'.join(map(re.escape, words))})", rendered)
            expected = [words[-1]] * images + [text for _, text in turns]
            if pieces[1::2] != expected:
                raise UserError(
                    "the tokenizer's chat template does not keep "
                    f"{images} images, then the text of the first of {users} user turns, and an "
                    "answer between any two of them"
                )
            before_answers = {pieces[2 * n] for n in range(images + 1, len(expected), 2)}
            if before_answers - {pieces[-1]}:
                raise UserError(
                    "the tokenizer's chat template begins its last answer otherwise than the ones "
                    f"before, by {pieces[-1]!r}: a step's score would depend on whether others "
                    "follow; take model.readout=generative, or another template"
                )
            self._rendered[key] = [self.special(piece) for piece in pieces[::2]]
        return self._rendered[key]

    def user_turn(self, text: str, images: Sequence[list[int]]) -> list[int]:
        """One user turn of the chat template, up to where its answer begins."""
        *around, after = self.turns(len(images), 1)
        ids = list(around[0])
        for image, piece in zip(images, around[1:], strict=True):
            ids += image + piece
        return ids + self.text(text) + after

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {
            "role": role,
            "content": text if self.images is None else [{"type": "text", "text": text}],
        }


class Prefixes(TokenLayout):
    """The layout ``prefixes``."""

    is_chat = True

    def __call__(self, trajectory: Trajectory, images: Sequence[list[int]]) -> list[Row]:
        """The rows of one trajectory, one a step."""
        if not (self.tokenizer.chat_template and trajectory.steps):
            ((ids, positions),) = super().__call__(trajectory, images)
            return [(ids[: end + 1], [end]) for end in positions] or [(ids, [])]
        rows: list[Row] = []
        for steps in range(1, len(trajectory.steps) + 1):
            # As in the published data: the question, then the response so far, blank lines between.
            text = "\n\n".join([trajectory.question, *trajectory.steps[:steps]])
            ids = self.user_turn(text, images)
            rows.append((ids, [len(ids) - 1]))
        return rows


class Turns(TokenLayout):
    """The layout ``turns``."""

    is_chat = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        if not self.tokenizer.chat_template:
            raise UserError(
                "model.readout=conversation lays steps out as turns of a chat, but the tokenizer "
                "has no chat template"
            )

    def __call__(self, trajectory: Trajectory, images: Sequence[list[int]]) -> list[Row]:
        """The one row of a trajectory."""
        assert self.answer is not None
        around = iter(self.turns(len(images), max(1, len(trajectory.steps))))
        ids = list(next(around))
        for image in images:
            ids += image + next(around)
        first = "\n\n".join([trajectory.question, *trajectory.steps[:1]])
        positions = []
        for n, text in enumerate([first, *trajectory.steps[1:]]):
            ids += self.text(text) + next(around)
            positions.append(len(ids) - 1)
            if n + 1 < len(trajectory.steps):
                ids += [self.answer, *next(around)]
        return [(ids, positions[: len(trajectory.steps)])]


LAYOUTS: dict[str, type[TokenLayout]] = {
    "markers": TokenLayout,
    "prefixes": Prefixes,
    "turns": Turns,
}
