"""Rows of tensors of equal length under their names, as a sequence of dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import default_collate

from dreamprm.errors import UserError
from dreamprm.weighting.rows import name_of


class Columns(Sequence[dict[str, Any]]):
    """n rows, of which row i is ``{name: column[i]}``; no row is made before it is asked for.

    Args:
        columns: tensors [n, …] or sequences of n values, by their names.

    Raises:
        UserError: they have not the same length, or there are none.
    """

    def __init__(self, columns: Mapping[str, Tensor | Sequence[Any]]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(f"columns have lengths {lengths}, expected the same one")
        self.columns = dict(columns)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, row: slice) -> Columns: ...
    def __getitem__(self, row: int | slice) -> dict[str, Any] | Columns:
        found = {name: column[row] for name, column in self.columns.items()}
        return Columns(found) if isinstance(row, slice) else found

    def batch(self, places: Sequence[int]) -> dict[str, Any]:
        """What ``default_collate`` makes of the rows at these places, a column at a time.

        All rows in their order are the tensors themselves: a full batch is not copied, so nothing
        may write into it.
        """
        index = None if list(places) == list(range(len(self))) else torch.tensor(places)
        found = {}
        for name, column in self.columns.items():
            if not isinstance(column, Tensor):
                found[name] = default_collate([column[place] for place in places])
            else:
                found[name] = column if index is None else column.index_select(0, index)
        return found


META = "meta"  # the group of meta rows among the training rows


def training_rows(
    train_on: str, train: Sequence[Mapping[str, Any]], meta: Sequence[Mapping[str, Any]], group: str
) -> Sequence[Mapping[str, Any]]:
    """What the lower level is trained on, as ``train_on`` of a config says.

    Args:
        train_on: ``"train"``, ``"both"`` or ``"meta"``; of both, what all rows have stays.
        train, meta: rows, or :class:`Columns`.
        group: the column of ``train`` that groups are taken from; of meta rows it says ``"meta"``.

    Raises:
        UserError: both are not of one kind.
    """
    if train_on == "train":
        return train
    if isinstance(meta, Columns):
        meta = Columns(meta.columns | {group: [META] * len(meta)})
    else:
        meta = [{**row, group: META} for row in meta]
    if train_on == "meta":
        return meta
    if isinstance(train, Columns) != isinstance(meta, Columns):
        raise UserError("train_on=both: training data and meta set are not both Columns")
    if isinstance(train, Columns) and isinstance(meta, Columns):
        shared = [name for name in train.columns if name in meta.columns]
        named = train.columns | {group: [name_of(v) for v in _plain(train.columns[group])]}
        return Columns({name: _joined(named[name], meta.columns[name]) for name in shared})
    train = [{**row, group: name_of(_plain(row[group]))} for row in train]
    shared = [name for name in train[0] if name in meta[0]] if train and meta else []
    return [{name: row[name] for name in shared} for row in [*train, *meta]]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    return [*first, *second]
