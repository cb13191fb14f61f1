"""What the readers of all formats share: checked trajectories, and counts of what is left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamprm.data.rows import read_rows
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

log = logging.getLogger("dreamprm")


class Rows:
    """The rows of a file, and how many of them held something that is left out.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self._notes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each row with its place; in the end the counts are said, in one warning."""
        for where, row in read_rows(self.path):
            self.total += 1
            yield where, row
        if self._notes:
            said = "; ".join(
                f"{count} of {self.total} rows {what}" for what, count in self._notes.items()
            )
            log.warning("%s: %s", self.path, said)

    def note(self, what: str) -> None:
        """Counts the row under way; ``what`` goes on from "3 of 10 rows"."""
        self._notes[what] += 1

    def solution(
        self,
        where: str,
        steps: Sequence[Any],
        labels: Iterable[float | None],
        **record: Any,
    ) -> tuple[str, Trajectory]:
        """The row under way as a trajectory, with its place.

        Steps of white space only are left out; its id is the row's number and its domain the
        file's name, unless ``record``, the other canonical keys, says otherwise.

        Raises:
            UserError: names the place and what is wrong.
            ValueError: there are not as many labels as steps.
        """
        kept, found = without_blank_steps(self, steps, labels)
        names = {"id": str(self.total), "domain": self.path.stem}
        record = names | record | {"steps": kept, "step_labels": found}
        return where, checked(where, self.path.parent, **record)


def checked(where: str, folder: Path, /, **record: Any) -> Trajectory:
    """A trajectory from the canonical keys, checked as a canonical row is.

    Raises:
        UserError: names the place and what is wrong.
    """
    try:
        return Trajectory.from_record(record, folder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def one_of(where: str, key: str, value: Any, labels: Mapping[Any, float | None]) -> float | None:
    """The label that a format's value stands for.

    Raises:
        UserError: it is none of the known values.
    """
    # 1 == True in Python, but a format has one of the two.
    for known, label in labels.items():
        if type(value) is type(known) and value == known:
            return label
    names = ", ".join(map(repr, labels))
    raise UserError(f"{where}: {key} is {value!r}, expected one of {names}")


def without_blank_steps(
    rows: Rows, steps: Sequence[Any], labels: Iterable[float | None]
) -> tuple[list[Any], list[float | None] | None]:
    """Leaves out steps of white space only, with their labels, and notes it; no label gives None.

    Raises:
        ValueError: there are not as many labels as steps.
    """
    pairs = list(zip(steps, labels, strict=True))
    kept = [(s, p) for s, p in pairs if not isinstance(s, str) or s.strip()]
    if len(kept) < len(pairs):
        rows.note("have a step of white space only, which is left out")
    found = [label for _, label in kept]
    return [step for step, _ in kept], found if any(p is not None for p in found) else None


def image_list(row: dict[str, Any], key: str, where: str) -> list[str]:
    """An image, a list of them, or none, as a list.

    Raises:
        UserError: it is something else.
    """
    value = row.get(key)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        return value
    raise UserError(f"{where}: {key} is {value!r}, expected a path or a list of paths")


class Ids:
    """Tells ids apart that repeat in a file: ``7``, ``7#2``, ``7#3``; and back, for writing."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def apart(self, name: str) -> str:
        """The id of the next row of that name."""
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}#{self._seen[name]}"

    def again(self, id: str) -> str:
        """The name that ``apart`` would make this id of."""
        name, _, number = id.rpartition("#")
        if name and number == str(self._seen[name] + 1) and self._seen[name]:
            self._seen[name] += 1
            return name
        self._seen[id] += 1
        return id
