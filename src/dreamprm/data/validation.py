"""Every row of a file against the schema, what its rows look like, and what is in it twice.

All errors are collected, not the first alone. Of a row, digests are kept and no text, so that a
million rows take some 60 MB.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dreamprm.data.findings import Findings
from dreamprm.data.formats import find_format
from dreamprm.data.images import read_image
from dreamprm.data.rows import Collector, collecting, parsed_rows
from dreamprm.data.trajectory import SelectionQuestion, Trajectory
from dreamprm.errors import UserError

Row = Trajectory | SelectionQuestion

MOST_ERRORS = 100  # of a format whose rows depend on others: each one means reading it anew
LONG = 100_000  # characters of a solution that are remarkable
LABEL_BINS = 10  # of equal width, in [0, 1]
STEP_EDGES = (0, 1, 2, 4, 8, 16, 32)  # upper edges; one more for what is above
CHARACTER_EDGES = (100, 300, 1_000, 3_000, 10_000, 100_000)


@dataclass
class DomainCounts:
    """What a domain holds, over its solutions.

    Attributes:
        solutions, right, wrong, unknown: how many, and by outcome.
        labels: of steps, by bins of equal width.
        unlabelled: steps without a label.
        steps: solutions by number of steps, with the upper edges ``STEP_EDGES``.
        characters: solutions by characters of their steps, with ``CHARACTER_EDGES``.
    """

    solutions: int = 0
    right: int = 0
    wrong: int = 0
    unknown: int = 0
    labels: list[int] = field(default_factory=lambda: [0] * LABEL_BINS)
    unlabelled: int = 0
    steps: list[int] = field(default_factory=lambda: [0] * (len(STEP_EDGES) + 1))
    characters: list[int] = field(default_factory=lambda: [0] * (len(CHARACTER_EDGES) + 1))

    def add(self, row: Trajectory) -> None:
        """Counts a solution."""
        self.solutions += 1
        self.right += row.outcome is True
        self.wrong += row.outcome is False
        self.unknown += row.outcome is None
        labels = row.step_labels or (None,) * len(row.steps)
        for label in labels:
            if label is None:
                self.unlabelled += 1
            else:
                self.labels[min(int(label * LABEL_BINS), LABEL_BINS - 1)] += 1
        self.steps[bisect_left(STEP_EDGES, len(row.steps))] += 1
        size = sum(map(len, row.steps))
        self.characters[bisect_left(CHARACTER_EDGES, size)] += 1


class Digests:
    """64 bits of something of every row, and the rows' places."""

    def __init__(self) -> None:
        self.values, self.rows = array("Q"), array("Q")

    def add(self, value: bytes, row: int) -> None:
        """Adds the digest of a row."""
        self.values.append(int.from_bytes(value, "little"))
        self.rows.append(row)

    def doubles(self) -> list[tuple[int, int]]:
        """Pairs of an earlier and a later row, next to each other among those that are equal."""
        values, rows = np.frombuffer(self.values, np.uint64), np.frombuffer(self.rows, np.uint64)
        order = np.argsort(values, kind="stable")
        same = np.flatnonzero(values[order][1:] == values[order][:-1])
        pairs = zip(rows[order[same]].tolist(), rows[order[same + 1]].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: pair[1])


@dataclass
class FileReport:
    """One file.

    Attributes:
        path: the file.
        role: ``"train"``, ``"meta"``, ``"test"``, or ``"data"`` where that is not said.
        rows: that could be read.
        findings: what is wrong.
        domains: the counts of each, by name.
        usable: by role, solutions that a run can use, by outcome.
    """

    path: Path
    role: str
    rows: int = 0
    findings: Findings = field(default_factory=Findings)
    domains: dict[str, DomainCounts] = field(default_factory=dict)
    usable: Counter[bool | None] = field(default_factory=Counter)
    prefix: str = ""
    ids: Digests = field(default_factory=Digests)
    solutions: Digests = field(default_factory=Digests)
    texts: Digests = field(default_factory=Digests)
    questions: Digests = field(default_factory=Digests)
    pictures: Digests = field(default_factory=Digests)

    def place(self, row: int) -> str:
        """Where a row stands."""
        return f"{self.prefix}{row}"


@dataclass
class Images:
    """Checks each image file once.

    Attributes:
        choice: ``require``, ``skip_missing`` or ``ignore``, as in a config.
        seen: the digest of every file, or what is wrong with it.
    """

    choice: str
    seen: dict[Path, bytes | str] = field(default_factory=dict)

    def digests(self, row: Row, where: str, findings: Findings) -> list[bytes]:
        """The digests of a row's images; what is wrong with them goes to ``findings``."""
        found = []
        for path in row.images if self.choice != "ignore" else ():
            if path not in self.seen:
                try:
                    read_image(path)
                    self.seen[path] = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
                except UserError as error:
                    self.seen[path] = str(error)
            entry = self.seen[path]
            if isinstance(entry, bytes):
                found.append(entry)
            else:
                optional = self.choice == "skip_missing" and not path.exists()
                findings.add("warning" if optional else "error", entry, where)
        return found


def check_file(path: Path, role: str, format: str, images: Images) -> Iterator[FileReport]:
    """Reads a file to its end and reports; yields its report after every row, for a progress bar.

    Args:
        path: the file, or ``hub:NAME``.
        role: see ``FileReport``.
        format: as of ``load_trajectories``.
        images: checks them.
    """
    report = FileReport(path, role)
    findings = report.findings
    bad = Counter[str]()

    def wrong(where: str, error: UserError) -> None:
        bad["rows"] += 1
        findings.add("error", str(error).removeprefix(f"{where}: "), where)

    collector = Collector(wrong)
    try:
        with collecting(collector):
            for where, row in _rows(path, role, format, collector):
                _check_row(report, where, row, images)
                yield report
    except UserError as error:
        message = str(error)
        findings.add("error", message, None if str(path) in message else str(path))
    else:
        if not report.rows and not bad["rows"]:
            findings.add("error", "holds no rows", str(path))
    for before, after in report.ids.doubles():
        message = f"the id stands at {report.place(before)} already"
        findings.add("error", message, report.place(after))
    for before, after in report.solutions.doubles():
        message = f"question and steps are those of {report.place(before)}"
        findings.add("warning", message, report.place(after))
    yield report


def _rows(path: Path, role: str, format: str, collector: Collector) -> Iterator[tuple[str, Row]]:
    if format != "canonical" and role != "test":
        yield from _adapted(path, format, collector)
        return
    roles: dict[str, type[Row]] = {
        "train": Trajectory, "meta": Trajectory, "test": SelectionQuestion
    }  # fmt: skip
    kind = roles.get(role)

    def parse(record: dict[str, Any], where: str, path: Path) -> Row:
        nonlocal kind
        # Where it is not said what a file is, its first row says it.
        kind = kind or (SelectionQuestion if "candidates" in record else Trajectory)
        return kind.from_record(record, path.parent)

    yield from parsed_rows(path, parse)


def _adapted(path: Path, format: str, collector: Collector) -> Iterator[tuple[str, Row]]:
    """The rows of another format, whose reader stops at an error: begun anew without that row."""
    done = 0
    reader = find_format(format, path)
    for _ in range(MOST_ERRORS):
        try:
            for number, found in enumerate(reader.read(path)):
                if number >= done:
                    done += 1
                    yield found
            return
        except UserError as error:
            if not str(error).startswith(f"{collector.last}: ") or not collector.last:
                raise
            collector.add(collector.last, error)
    raise UserError(f"{path}: has {MOST_ERRORS} wrong rows or more; what follows was not read")


def _check_row(report: FileReport, where: str, row: Row, images: Images) -> None:
    findings = report.findings
    number = where[len(where.rstrip("0123456789")) :]
    if not report.rows:
        report.prefix = where.removesuffix(number)
    report.rows += 1
    place = int(number or report.rows)
    pictures = images.digests(row, where, findings)
    text = " ".join(unicodedata.normalize("NFKC", row.question).casefold().split())
    report.ids.add(_digest(row.id), place)
    report.texts.add(_digest(text), place)
    report.questions.add(_digest(text, *(digest.hex() for digest in pictures)), place)
    for digest in pictures:
        report.pictures.add(digest, place)
    for solution in row.trajectories() if isinstance(row, SelectionQuestion) else [row]:
        report.domains.setdefault(solution.domain, DomainCounts()).add(solution)
        if isinstance(row, Trajectory):
            names = (str(image) for image in row.images)
            report.solutions.add(_digest(row.question, *names, "", *row.steps), place)
        if not solution.steps:
            findings.add("warning", "has no steps", where)
        else:
            report.usable[solution.outcome] += 1
        if sum(map(len, solution.steps)) > LONG:
            findings.add("warning", f"has more than {LONG} characters", where)
        if report.role == "train" and not solution.domain:
            findings.add("error", "has no domain, which its weight is of", where)
    if isinstance(row, SelectionQuestion):
        correct = {candidate.correct for candidate in row.candidates}
        if None in correct:
            findings.add("error", "a candidate has no 'correct': true or false", where)
        elif len(correct) == 1:
            only = "right" if True in correct else "wrong"
            findings.add("warning", f"all candidates are {only}: nothing to choose", where)


def _digest(*texts: str) -> bytes:
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=8).digest()
