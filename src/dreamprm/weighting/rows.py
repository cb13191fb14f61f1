"""What a weighting may ask of the training rows, and how rows fall into groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamprm.errors import UserError


@dataclass(frozen=True)
class Rows:
    """The n training rows, of which a batch's ``"index"`` holds places.

    Attributes:
        count: n.
        column: the values of a column, one a row; raises a UserError for a name it does not know.
        names: of the rows; by default their numbers.
        text: what a reader is shown of a row.
        example: a batch as the lower problem gets it.
        group: the column that groups rows unless another one is asked for.
        labels: the column, and the entry of a batch, that holds their labels.
    """

    count: int
    column: Callable[[str], Sequence[Any]]
    names: Callable[[], Sequence[str]]
    text: Callable[[int], str]
    example: Callable[[], Any]
    group: str = "domain"
    labels: str = "label"


def grouped(rows: Rows, column: str, bins: int = 0) -> tuple[list[str], Tensor]:
    """The names of the groups, sorted, and for every row the place of its own, [n].

    Args:
        rows: the training rows.
        column: whose values are the groups' names.
        bins: how many groups a column of numbers is cut into, at its quantiles; 0 for one group a
            value.

    Raises:
        UserError: there is no such column, a row has no value, or bins are asked of what is no
            number.
    """
    values = list(rows.column(column))
    for place, value in enumerate(values):
        if value is None or value == "":
            name = rows.names()[place]
            raise UserError(f"training row {name!r} has no {column}, which its weight is of")
    if bins:
        return _binned(values, column, bins)
    texts = [name_of(value) for value in values]
    names = sorted(set(texts))
    places = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([places[text] for text in texts])


def name_of(value: Any) -> str:
    """What a group is called by its value."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _binned(values: Sequence[Any], column: str, bins: int) -> tuple[list[str], Tensor]:
    for value in values:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise UserError(f"weighting_options.bins is for numbers; {column} has {value!r}")
    numbers = np.array(values, float)
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1]))
    codes = np.searchsorted(edges, numbers, side="right")
    found = sorted(set(codes.tolist()))
    width = len(str(len(found)))
    names = [
        f"{place + 1:0{width}}: {numbers[codes == code].min():g} to "
        f"{numbers[codes == code].max():g}"
        for place, code in enumerate(found)
    ]
    return names, torch.from_numpy(np.searchsorted(found, codes))
