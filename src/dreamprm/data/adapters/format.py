"""What a file format is: how its rows are told, read and written, and what they cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamprm.data.rows import parsed_rows
from dreamprm.data.steps import STEP_HEADING, stripped_steps
from dreamprm.data.trajectory import Trajectory

# Each trajectory with the place where it stands, "file:line".
Reader = Callable[[Path], Iterator[tuple[str, Trajectory]]]
# The trajectory that a row is, at a place, of a file.
Parser = Callable[[dict[str, Any], str, Path], Trajectory]
# The rows of trajectories, images relative to the given folder.
Writer = Callable[[Iterable[Trajectory], Path], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: as in configs and on the command line.
        read: streams the trajectories of a file, and says in one warning at the end how many rows
            held something that is left out.
        recognise: whether a row is one of this format's, by its keys.
        write: turns trajectories into rows; None for a format that is only read.
        cannot_hold: keys of ``PROPERTIES``: what is lost when such a trajectory is written.
        needs: keys of ``NEEDS``: a trajectory without it cannot be written at all.
        folder: whether it is a folder instead of a file.
        origin: what its files are made of, where that is one public data set.
        parse: one row's trajectory, where that is the row's alone; ``read`` is of it then. Such
            rows need not be read from the start to have one of them.
    """

    name: str
    read: Reader
    recognise: Callable[[Mapping[str, Any]], bool]
    write: Writer | None = None
    cannot_hold: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    folder: bool = False
    origin: str = ""
    parse: Parser | None = None


def format_of_rows(
    name: str,
    parse: Parser,
    recognise: Callable[[Mapping[str, Any]], bool],
    write: Writer | None = None,
    origin: str = "",
) -> Format:
    """A format of which each row is one trajectory, whatever the others are; see ``Format``."""

    def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
        return parsed_rows(path, parse)

    return Format(name, read, recognise, write, origin=origin, parse=parse)


def hard_label(label: float) -> bool:
    """A fraction of right completions as right or wrong: right where any completion was.

    Math-Shepherd's hard estimation (arXiv 2312.08935, equation 3), and VisualPRM's threshold 0.
    """
    return label > 0


def _labels(row: Trajectory) -> tuple[float | None, ...]:
    return row.step_labels or (None,) * len(row.steps)


def _first_error(row: Trajectory) -> int:
    """The index of the first step that is labelled wrong; the number of steps where none is."""
    wrong = (i for i, p in enumerate(_labels(row)) if p is not None and not hard_label(p))
    return next(wrong, len(row.steps))


def _merges(row: Trajectory) -> bool:
    labels = _labels(row)
    last = max((i for i, label in enumerate(labels) if label is not None), default=-1)
    return any(
        label is None and (i > last or not STEP_HEADING.match(row.steps[i + 1]))
        for i, label in enumerate(labels)
    )


def _resplit(row: Trajectory) -> bool:
    if not row.steps:
        return False
    again = stripped_steps("\n\n".join(row.steps))
    return again != list(row.steps) or not STEP_HEADING.match(row.steps[0])


PROPERTIES: dict[str, Callable[[Trajectory], bool]] = {
    "id": lambda row: True,
    "domain": lambda row: bool(row.domain),
    "images": lambda row: bool(row.images),
    "images after the first": lambda row: len(row.images) > 1,
    "step labels": lambda row: row.has_labels,
    "labels between 0 and 1": lambda row: any(0 < (label or 0) < 1 for label in _labels(row)),
    "labels after the first error": lambda row: any(
        label is not None for label in _labels(row)[_first_error(row) + 1 :]
    ),
    "unlabelled steps, at the end or before one without a 'Step n' heading": _merges,
    "steps without a 'Step n' heading": _resplit,
    "a first step that does not begin with 'Step 1:'": lambda row: (
        bool(row.steps) and not row.steps[0].startswith("Step 1:")
    ),
    "white space around steps": lambda row: any(step != step.strip() for step in row.steps),
    "outcome": lambda row: row.outcome is not None,
    "answer": lambda row: row.answer is not None,
    "answer without steps": lambda row: row.answer is not None and not row.steps,
    "extra columns": lambda row: bool(row.extra),
}

NEEDS: dict[str, Callable[[Trajectory], bool]] = {
    "a step": lambda row: bool(row.steps),
    "a labelled step": lambda row: row.has_labels,
    "a label for every step": lambda row: bool(row.steps) and None not in _labels(row),
    "a label for every step up to the first error": lambda row: (
        bool(row.steps) and None not in _labels(row)[: _first_error(row)]
    ),
    "an outcome": lambda row: row.outcome is not None,
    "a text without 'ки'": lambda row: not any("ки" in s for s in (row.question, *row.steps)),
}
