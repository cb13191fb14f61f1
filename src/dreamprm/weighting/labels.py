"""Labels in the place of weights: every row's label is itself what the upper problem learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dreamprm.errors import UserError, need_whole
from dreamprm.weighting.row_parameters import RowParameters
from dreamprm.weighting.rows import Rows


class Space(Protocol):
    """Where labels lie."""

    def read(self, raw: Tensor) -> Tensor:
        """The labels of raw values; a gradient goes through it."""

    def project(self, raw: Tensor) -> Tensor:
        """The raw values that are allowed and nearest to these."""


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, each for itself."""

    low: float = 0.0
    high: float = 1.0

    def read(self, raw: Tensor) -> Tensor:
        """As they are."""
        return raw

    def project(self, raw: Tensor) -> Tensor:
        """Cut at both ends."""
        return raw.clamp(self.low, self.high)


@dataclass(frozen=True)
class Classes:
    """Probabilities of classes, [n, C]: non-negative values over their sum.

    A gradient through the sum is of one class against those that the label has now; without it, an
    optimizer that scales every value by itself would move all classes that beat the average.
    """

    def read(self, raw: Tensor) -> Tensor:
        """Over their sum."""
        return raw / raw.sum(-1, keepdim=True)

    def project(self, raw: Tensor) -> Tensor:
        """Cut at 0, and over their sum; all alike where nothing is left."""
        raw = raw.clamp(min=0)
        total = raw.sum(-1, keepdim=True)
        return torch.where(total == 0, 1 / raw.shape[-1], raw / total)


class LabelTable(RowParameters):
    """A label, or several, for each of n training rows, started at the data's own.

    The labels are the upper variables themselves (DreamPRM-Code, arXiv 2512.15000), kept in their
    space by projection after every step.

    Args:
        entry: of a batch that holds the labels, [b] or [b, S].
        given: the n labels of the data, a number or a list of numbers and None each.
        start: the same as raw values, [n], [n, S_max] or [n, C]; what is None is not read.
        space: in which they stay.
    """

    def __init__(self, entry: str, given: Sequence[Any], start: Tensor, space: Space) -> None:
        super().__init__()
        self.entry, self.given, self.space = entry, given, space
        self.alpha = nn.Parameter(start)

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b]: 1."""
        return torch.ones_like(losses)

    def corrected(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the labels of its rows as they are now.

        Raises:
            UserError: it has no such entry.
        """
        if self.entry not in batch:
            raise UserError(
                f"weighting=label_table: a batch has no entry {self.entry!r} for the labels of "
                f"that column; its entries are {', '.join(map(str, batch))}"
            )
        labels = self.space.read(self.alpha[self.places(batch)])
        if batch[self.entry].dim() > 1:
            labels = labels[:, : batch[self.entry].shape[1]]  # as many as the batch is wide
        return {**batch, self.entry: labels}

    @torch.no_grad()
    def project(self) -> None:
        """Brings the labels that the last step has moved back to where they may be."""
        grad = self.alpha.grad
        if grad is not None and grad.is_sparse:
            rows = grad._indices()[0]
            self.alpha[rows] = self.space.project(self.alpha[rows])
        else:
            self.alpha.copy_(self.space.project(self.alpha))

    @torch.no_grad()
    def row_labels(self) -> list[Any]:
        """The n labels, each as long as it was given, None where none was; or C probabilities."""
        now = self.space.read(self.alpha).tolist()
        return [
            [None if a is None else b for a, b in zip(was, is_now, strict=False)]
            if isinstance(was, list | tuple)
            else is_now
            for was, is_now in zip(self.given, now, strict=True)
        ]


def label_table(
    rows: Rows,
    *,
    column: str | None = None,
    classes: int = 0,
    low: float = 0.0,
    high: float = 1.0,
) -> LabelTable:
    """A table of the labels of all training rows; whole numbers are classes.

    Args:
        rows: the training rows.
        column: of the data, and entry of a batch, that holds the labels; by default the one that
            the task says.
        classes: how many there are, where labels are whole numbers; 0 for the highest and 1 more.
        low, high: between which labels stay that are no classes.

    Raises:
        UserError: there is no such column, a row has no label in it, or a label is no number, or
            out of range.
    """
    need_whole("weighting_options.classes", classes, 0)
    column = column or rows.labels
    given = list(rows.column(column))
    if given and all(isinstance(v, int) and not isinstance(v, bool) for v in given):
        return LabelTable(column, given, _one_hot(rows, column, given, classes), Classes())
    lists = [list(v) if isinstance(v, list | tuple) else [v] for v in given]
    start = torch.zeros(len(given), max(map(len, lists), default=1))
    for place, values in enumerate(lists):
        if all(value is None for value in values):
            raise UserError(f"training row {rows.names()[place]!r} has no {column} to correct")
        for i, value in enumerate(values):
            if value is None:
                continue
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UserError(
                    f"training row {rows.names()[place]!r}: {column} has {value!r}, expected "
                    f"numbers from {low:g} to {high:g} (weighting_options.low and .high)"
                )
            start[place, i] = float(value)
    several = any(isinstance(v, list | tuple) for v in given)
    return LabelTable(column, given, start if several else start[:, 0].clone(), Interval(low, high))


def _one_hot(rows: Rows, column: str, given: Sequence[int], classes: int) -> Tensor:
    """[n, C], 1 at the label of every row."""
    count = classes or max(given) + 1
    for place, value in enumerate(given):
        if not 0 <= value < count:
            raise UserError(
                f"training row {rows.names()[place]!r}: {column} is {value}, expected 0 to "
                f"{count - 1} (weighting_options.classes)"
            )
    return torch.nn.functional.one_hot(torch.tensor(given), count).float()
