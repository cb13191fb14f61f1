"""Digests of data: of what rows say and images show, and of no path, so that data may be moved."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamprm.data.trajectory import SelectionQuestion, Trajectory
from dreamprm.errors import UserError
from dreamprm.progress import progress_bar
from dreamprm.writing import write_whole

MISSING = "missing"  # in the place of the digest of an image that is not there
BAR_ABOVE = 10_000  # images

# Of a file when its digest was taken: its size, and when its content and its entry were changed.
State = tuple[int, ...]
Known = dict[str, tuple[State, str]]


class RowsDigest:
    """Takes rows one after the other.

    Attributes:
        images: the files of the rows, in the order of their first appearance.
    """

    def __init__(self) -> None:
        self._rows, self._places = hashlib.sha256(), hashlib.sha256()
        self.images: dict[Path, int] = {}

    def add(self, row: Trajectory | SelectionQuestion) -> None:
        """Takes in all that a row has."""
        fields: list[Any] = [row.id, row.question, row.answer]
        if isinstance(row, Trajectory):
            fields += [row.domain, row.steps, row.step_labels, row.outcome]
            if row.extra:
                fields.append(row.extra)
        else:
            fields += [
                [c.domain, c.steps, c.step_labels, c.correct, c.answer] for c in row.candidates
            ]
        places = [self.images.setdefault(path, len(self.images)) for path in row.images]
        self._rows.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
        self._places.update(json.dumps(places).encode() + b"\n")

    def contents(self) -> Contents:
        """What the rows hold that were taken in."""
        return Contents(self._rows.hexdigest(), self._places.hexdigest(), tuple(self.images))


@dataclass(frozen=True)
class Contents:
    """What rows hold.

    Attributes:
        rows: a digest of all but the images, in hexadecimal.
        places: one of which images belong to which row, by their place in ``images``.
        images: the files.
        cache: where the digests of the files are kept; None for nowhere.
    """

    rows: str
    places: str
    images: Sequence[Path]
    cache: Path | None = None

    @classmethod
    def of(cls, rows: Iterable[Trajectory | SelectionQuestion]) -> Contents:
        """What rows in memory hold."""
        digest = RowsDigest()
        for row in rows:
            digest.add(row)
        return digest.contents()

    def images_digest(self, known: Known) -> str:
        """A digest of which images belong to which row, and of what is in their files.

        Args:
            known: digests that need not be taken again; those that are taken are added.

        Raises:
            UserError: an image cannot be read, or the cache cannot be written.
        """
        if self.cache is not None and self.cache.is_file():
            known |= {
                path: (tuple(state), digest)
                for path, (state, digest) in json.loads(self.cache.read_text()).items()
            }
        taken: Known = {}
        found = hashlib.sha256(self.places.encode())
        name = "digest of images" if len(self.images) > BAR_ABOVE else None
        with progress_bar(name, len(self.images), "image") as bar:
            for path in self.images:
                found.update(_image_digest(path, known, taken).encode())
                bar.update()
        if self.cache is not None and taken:
            kept = {str(path): known[str(path)] for path in self.images if str(path) in known}
            write_whole(self.cache, [json.dumps(kept)])
        return found.hexdigest()


def _image_digest(path: Path, known: Known, taken: Known) -> str:
    try:
        found = os.stat(path)
        state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if str(path) in known and known[str(path)][0] == state:
            return known[str(path)][1]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return MISSING  # who reads it says so, or leaves it out
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}") from error
    known[str(path)] = taken[str(path)] = (state, digest)
    return digest


def data_digests(parts: Mapping[str, Sequence[Contents]]) -> dict[str, str]:
    """Two digests for every part of the data, ``NAME`` and ``images of the NAME``.

    Args:
        parts: what each holds, by its name.

    Raises:
        UserError: an image cannot be read.
    """
    known: Known = {}
    found = {}
    for name, contents in parts.items():
        found[name] = _joined([each.rows for each in contents])
        found[f"images of the {name}"] = _joined([each.images_digest(known) for each in contents])
    return found


def _joined(digests: Sequence[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
