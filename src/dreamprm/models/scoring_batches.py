"""Which solutions go through the backbone together: whole questions, as many as a budget holds.

The budget is in tokens, padding included, so that a pass costs about the same whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamprm.data.images import image_pixels
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.encoding import Encoder

MAX_TOKENS = 8192


@dataclass(frozen=True)
class Piece:
    """Solutions of one question that stay together.

    Attributes:
        rows: their indices.
        lengths: their tokens.
        prefix: the tokens that they have in common and run once; 0 for a solution alone.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    prefix: int

    @property
    def tokens(self) -> int:
        """Tokens that the backbone runs."""
        return sum(self.lengths) - self.prefix * (len(self.rows) - 1)


@dataclass(frozen=True)
class TokenBatch:
    """What goes through the backbone together: solutions that share prefixes, or that do not."""

    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> list[int]:
        """The indices of the solutions, piece by piece."""
        return [row for piece in self.pieces for row in piece.rows]

    @property
    def shared(self) -> bool:
        """Whether the solutions continue from prefixes."""
        return self.pieces[0].prefix > 0

    @property
    def slots(self) -> int:
        """Tokens that the backbone runs, padding included."""
        own = max(length - piece.prefix for piece in self.pieces for length in piece.lengths)
        prefix = max(piece.prefix for piece in self.pieces)
        return len(self.pieces) * prefix + sum(len(piece.rows) for piece in self.pieces) * own


def token_batches(
    encode: Encoder,
    items: Sequence[Trajectory],
    max_tokens: int,
    share: bool,
    done: Collection[int] = (),
) -> Iterator[TokenBatch]:
    """Batches of about ``max_tokens`` tokens, by length, of all solutions with steps.

    The batches are a function of the items, ``max_tokens`` and ``share``; they are made one at a
    time, so that images are read shortly before they are needed.

    Args:
        encode: the model's encoder.
        items: what is to be scored.
        max_tokens: of one batch, padding included; a longer solution is a batch of its own.
        share: whether the solutions of one question run what they have in common once.
        done: the solutions of the first batches, which are left out: the others stay as they are.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, item in enumerate(items):
        if item.steps:
            groups.setdefault(item.question_key if share else i, []).append(i)
    sizes = {
        key: (len(group) > 1, _characters([items[i] for i in group]))
        for key, group in groups.items()
    }
    waiting: list[Piece] = []
    for key in sorted(groups, key=sizes.__getitem__):
        if all(i in done for i in groups[key]):
            continue
        for piece in _pieces(groups[key], encode, items, max_tokens):
            if piece.rows[0] in done:
                continue
            larger = TokenBatch((*waiting, piece))
            same_kind = (piece.prefix > 0) == larger.shared
            if waiting and not (same_kind and larger.slots <= max_tokens):
                yield TokenBatch(tuple(waiting))
                waiting = []
            waiting.append(piece)
    if waiting:
        yield TokenBatch(tuple(waiting))


def _pieces(
    group: Sequence[int], encode: Encoder, items: Sequence[Trajectory], max_tokens: int
) -> Iterator[Piece]:
    """The solutions of one question, in several pieces where a batch cannot hold them."""
    piece, common = None, []
    for i in group:
        rows = encode.rows(items[i])
        ids = rows[-1][0]
        if len(rows) > 1:  # every prefix a row of its own, which nobody shares
            yield Piece((i,), (len(rows) * len(ids),), 0)
            continue
        if piece is not None:
            pairs = enumerate(zip(common, ids, strict=False))
            shared = next((n for n, (x, y) in pairs if x != y), min(len(common), len(ids)))
            lengths = (*piece.lengths, len(ids))
            # Every solution keeps a token of its own, to continue with.
            larger = Piece((*piece.rows, i), lengths, min(shared, min(lengths) - 1))
            if TokenBatch((larger,)).slots <= max_tokens:
                piece, common = larger, common[:shared]
                continue
            yield piece
        piece, common = Piece((i,), (len(ids),), 0), ids
    if piece is not None:
        yield piece


def _characters(group: Sequence[Trajectory]) -> float:
    """A guess at the longest solution, to sort by, without tokenising or decoding anything."""
    steps = max(sum(map(len, item.steps)) for item in group)
    # A token stands for four characters or so, and for 28 by 28 pixels.
    return len(group[0].question) + steps + sum(map(_pixels, group[0].images)) / 196


def _pixels(path: Path) -> int:
    try:
        return image_pixels(path)
    except UserError:
        return 0  # the encoder says what is wrong with it


@dataclass
class Tally:
    """What went through the backbone, to say how much of it was worth it."""

    passes: int = 0
    solutions: int = 0
    tokens: int = 0
    slots: int = 0
    repeated: int = 0

    def add(self, batch: TokenBatch) -> None:
        """Counts one batch."""
        self.passes += 1
        self.solutions += len(batch.rows)
        self.tokens += sum(piece.tokens for piece in batch.pieces)
        self.slots += batch.slots
        self.repeated += sum(sum(piece.lengths) - piece.tokens for piece in batch.pieces)

    def __str__(self) -> str:
        padding = 1 - self.tokens / self.slots if self.slots else 0.0
        whole = self.tokens + self.repeated
        saved = self.repeated / whole if whole else 0.0
        return (
            f"{self.solutions:,} solutions in {self.passes:,} batches: {self.slots:,} tokens, "
            f"{padding:.0%} of them padding; shared prefixes saved {saved:.0%}"
        )
