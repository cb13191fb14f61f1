"""Trajectories that are made when they are asked for, with what a run must know of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import numpy as np

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name

UNKNOWN = -1  # of an outcome


@dataclass(frozen=True)
class Columns:
    """What is known of n trajectories, 15 bytes each.

    Attributes:
        names: of the domains.
        domain: [n], the place of each one's domain in ``names``.
        question: [n], a digest, equal for the solutions of one question.
        labelled: [n], whether a step has a label.
        stepped: [n], whether there are steps.
        outcome: [n], 1 for right, 0 for wrong, -1 where unknown.
    """

    names: tuple[str, ...]
    domain: np.ndarray
    question: np.ndarray
    labelled: np.ndarray
    stepped: np.ndarray
    outcome: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them but the names."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "names"}


TYPES = {
    "domain": np.int32,
    "question": np.uint64,
    "labelled": np.bool_,
    "stepped": np.bool_,
    "outcome": np.int8,
}


_READ: dict[str, Callable[[Trajectory], Any]] = {
    "id": lambda row: row.id,
    "steps": lambda row: len(row.steps),
    "step_labels": lambda row: row.step_labels,
}


class TrajectoryTable(Sequence[Trajectory]):
    """A sequence of trajectories of which few are in memory at a time.

    Args:
        read: makes the trajectory of a row.
        columns: what is known of every row.
    """

    def __init__(self, read: Callable[[int], Trajectory], columns: Columns) -> None:
        self.read = read
        self.columns = columns

    @classmethod
    def of(cls, rows: Sequence[Trajectory]) -> TrajectoryTable:
        """The table of trajectories that are in memory; a table as it is."""
        if isinstance(rows, TrajectoryTable):
            return rows
        names = tuple(sorted({row.domain for row in rows}))
        code = {name: place for place, name in enumerate(names)}
        facts = [(code[row.domain], *facts_of(row)) for row in rows]
        arrays: dict[str, Any] = {
            name: np.fromiter((fact[place] for fact in facts), kind, len(facts))
            for place, (name, kind) in enumerate(TYPES.items())
        }
        return cls(rows.__getitem__, Columns(names, **arrays))

    @classmethod
    def concatenate(cls, parts: Sequence[TrajectoryTable]) -> TrajectoryTable:
        """The rows of several tables, one after the other."""
        if len(parts) == 1:
            return parts[0]
        names = tuple(sorted({name for part in parts for name in part.columns.names}))
        code = {name: place for place, name in enumerate(names)}
        all_arrays = []
        for part in parts:
            arrays = part.columns.arrays()
            codes = np.array([code[name] for name in part.columns.names], np.int32)
            all_arrays.append(arrays | {"domain": codes[arrays["domain"]]})
        joined = {name: np.concatenate([a[name] for a in all_arrays]) for name in TYPES}
        ends = np.cumsum([len(part) for part in parts])

        def read(row: int) -> Trajectory:
            part = int(np.searchsorted(ends, row, side="right"))
            return parts[part].read(row - int(ends[part]) + len(parts[part]))

        return cls(read, Columns(names, **joined))

    def take(self, rows: np.ndarray) -> TrajectoryTable:
        """The table of some of the rows, in the order given."""
        arrays = {name: array[rows] for name, array in self.columns.arrays().items()}
        return TrajectoryTable(
            lambda row: self.read(int(rows[row])), Columns(self.columns.names, **arrays)
        )

    def change(
        self, change: Callable[[int, Trajectory], Trajectory], **columns: Any
    ) -> TrajectoryTable:
        """The table with every trajectory changed when it is made, and the columns that follow."""
        return TrajectoryTable(
            lambda row: change(row, self.read(row)), replace(self.columns, **columns)
        )

    @property
    def domains(self) -> list[str]:
        """The names of the domains that rows have, sorted."""
        return sorted(self.columns.names[code] for code in np.unique(self.columns.domain))

    def column(self, name: str) -> list[Any]:
        """[n], the value that each row has under a name, None for a row without one.

        ``domain`` and ``outcome`` are known without reading a row; else all are read once.

        Args:
            name: ``domain``, ``outcome``, ``id``, ``steps`` (how many), ``step_labels``, or an
                extra column.

        Raises:
            UserError: no row has a column of that name.
        """
        if name == "domain":
            return [self.columns.names[code] or None for code in self.columns.domain]
        if name == "outcome":
            return [None if code == UNKNOWN else bool(code) for code in self.columns.outcome]
        if name in _READ:
            return [_READ[name](row) for row in self]
        values, known = [], {"domain", "outcome", *_READ}
        for row in self:
            values.append(row.extra.get(name))
            known.update(row.extra)
        if name not in known:
            raise UserError(unknown_name("column", name, known))
        return values

    def groups(self) -> np.ndarray:
        """[n], for each row the place of its domain among ``domains``."""
        order = {name: place for place, name in enumerate(self.domains)}
        codes = np.array([order.get(name, -1) for name in self.columns.names], np.int32)
        return codes[self.columns.domain]

    def __len__(self) -> int:
        return len(self.columns.domain)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self.read(row) for row in range(len(self)))

    @overload
    def __getitem__(self, row: int) -> Trajectory: ...
    @overload
    def __getitem__(self, row: slice) -> TrajectoryTable: ...
    def __getitem__(self, row: int | slice) -> Trajectory | TrajectoryTable:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.read(row % len(self))


def facts_of(row: Trajectory) -> tuple[int, bool, bool, int]:
    """What the columns hold of a trajectory, but its domain."""
    outcome = UNKNOWN if row.outcome is None else int(row.outcome)
    return question_digest(row), row.has_labels, bool(row.steps), outcome


def question_digest(row: Trajectory) -> int:
    """64 bits, equal for the solutions of one question."""
    text = "\0".join([row.question, *map(str, row.images)]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
