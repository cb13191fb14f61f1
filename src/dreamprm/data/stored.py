"""Files of trajectories that stay on disk: an index made once, and rows parsed when asked for.

The index is a folder in the cache (``$DREAMPRM_CACHE``, else ``~/.cache/dreamprm``), named after
the file's path and after its size, its time of change and this package's readers: a file that has
changed is indexed anew, and the old index removed. It holds the place of every row in bytes and
the columns of ``TrajectoryTable``, 27 bytes a row. What is not JSON Lines of a format whose rows
are each a trajectory is converted to canonical ones once, beside the index.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dreamprm.data.adapters.canonical import CANONICAL
from dreamprm.data.adapters.format import Parser
from dreamprm.data.digests import Contents, RowsDigest
from dreamprm.data.formats import find_format, with_images
from dreamprm.data.json_rows import json_lines, parse_object
from dreamprm.data.rows import HUB, hub_dataset
from dreamprm.data.table import TYPES, Columns, TrajectoryTable, facts_of
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.progress import progress_bar

log = logging.getLogger("dreamprm")

_ABOUT, _COPY = "about.json", "rows.jsonl"
_CONTENTS, _IMAGES = "contents.json", "images.json"
_PLACES = {"offset": np.uint64, "length": np.uint32}


def cache_folder() -> Path:
    """Where indexes are kept; it can be deleted at any time but while a run reads from it."""
    found = os.environ.get("DREAMPRM_CACHE")
    if found:
        return Path(found)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreamprm"


def open_stored(path: Path, format: str, images: str) -> TrajectoryTable:
    """The trajectories of a file, none of which is in memory.

    Every row is checked when the index is made, and no more when it is there.

    Args:
        path: as of ``load_trajectories``, or ``hub:NAME``.
        format: as of ``load_trajectories``.
        images: as of ``load_trajectories``.

    Raises:
        UserError: as ``load_trajectories``; or the cache cannot be written.
    """
    index = _index_of(path, format, images)
    about = json.loads((index / _ABOUT).read_text())
    arrays = {key: np.load(index / f"{key}.npy", mmap_mode="r") for key in (*TYPES, *_PLACES)}
    offset, length = arrays.pop("offset"), arrays.pop("length")
    if about["incomplete"]:
        log.warning(
            "%s: images of %d of %d rows are missing and left out",
            path, about["incomplete"], len(offset),
        )  # fmt: skip
    lines = path if about["lines"] else index / _COPY
    parse = (find_format(format, path) if about["lines"] else CANONICAL).parse
    # The images of a copy are where they were.
    stands = path if about["lines"] else _folder(path) / _COPY
    assert parse is not None
    # Open for as long as the table lives: a file that is replaced meanwhile goes on being read.
    file = lines.open("rb", buffering=0)

    def read(row: int) -> Trajectory:
        where = f"{lines}: row {row + 1}"
        file.seek(int(offset[row]))
        try:
            record = parse_object(file.read(int(length[row])), where)
            found = parse(record, where, stands)
        except UserError as error:
            raise UserError(f"{path} has changed since the run began: {error}") from error
        # A file that is required and has gone since is an error where it is read.
        return found if images == "require" else with_images(found, where, images)[0]

    return TrajectoryTable(read, Columns(tuple(about["domains"]), **arrays))


def stored_contents(path: Path, format: str, images: str) -> Contents:
    """What a file that ``open_stored`` has opened holds; arguments as there.

    The digests of its images are kept in the index with the size and the times of change of each.
    """
    index = _index_of(path, format, images)
    found = json.loads((index / _CONTENTS).read_text())
    files = [Path(name) for name in found["images"]]
    return Contents(found["rows"], found["places"], files, cache=index / _IMAGES)


def _index_of(path: Path, format: str, images: str) -> Path:
    """The folder of a file's index, which is made if need be."""
    name = _digest(os.path.abspath(path), str(path), format, images)
    index = cache_folder() / "index" / f"{name}-{_digest(*_state(path))}"
    if not index.is_dir():
        _make(index, path, format, images)
        for stale in index.parent.glob(f"{name}-*"):
            if stale != index:
                shutil.rmtree(stale, ignore_errors=True)
    return index


def _make(index: Path, path: Path, format: str, images: str) -> None:
    """Reads and checks every row, and writes the index, whole or not at all."""
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=index.parent, prefix="partial-"))
    except OSError as error:
        raise UserError(
            f"cannot write an index to {index.parent}: {error.strerror}; "
            "the environment variable DREAMPRM_CACHE names another folder"
        ) from error
    try:
        about = _write(partial, path, format, images)
        (partial / _ABOUT).write_text(json.dumps(about))
        try:
            os.rename(partial, index)
        except OSError:
            if not index.is_dir():  # but where another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, path: Path, format: str, images: str) -> dict[str, Any]:
    kinds = (TYPES | _PLACES).items()
    columns = {key: array("b" if kind is np.bool_ else np.dtype(kind).char) for key, kind in kinds}
    ids = array("Q")
    domains: dict[str, int] = {}
    incomplete = 0
    contents = RowsDigest()
    parse = _parser_of_lines(path, format)
    places = _lines(path, parse) if parse else _converted(path, format, folder / _COPY)
    with progress_bar(f"index {path.name}", None, "row") as bar:
        for where, offset, length, row in places:
            # With missing images, which may be there another time.
            contents.add(replace(row, images=()) if images == "ignore" else row)
            row, missing = with_images(row, where, images)
            incomplete += bool(missing)
            ids.append(int.from_bytes(hashlib.blake2b(row.id.encode(), digest_size=8).digest()))
            code = domains.setdefault(row.domain, len(domains))
            for key, value in zip(columns, (code, *facts_of(row), offset, length), strict=True):
                columns[key].append(value)
            bar.update()
    if not ids:
        raise UserError(f"{path} holds no rows")
    _refuse_doubles(np.frombuffer(ids, np.uint64), path, format)
    for key, kind in kinds:
        np.save(folder / f"{key}.npy", np.frombuffer(columns[key], kind))
    found = contents.contents()
    about = {"rows": found.rows, "places": found.places, "images": list(map(str, found.images))}
    (folder / _CONTENTS).write_text(json.dumps(about))
    return {
        "path": str(path),
        "lines": parse is not None,
        "domains": list(domains),
        "incomplete": incomplete,
    }


def _parser_of_lines(path: Path, format: str) -> Parser | None:
    if path.suffix != ".jsonl" or str(path).startswith(HUB):
        return None
    return find_format(format, path).parse


def _lines(path: Path, parse: Parser) -> Iterator[tuple[str, int, int, Trajectory]]:
    for number, offset, line in json_lines(path):
        where = f"{path}:{number}"
        yield where, offset, len(line), parse(parse_object(line, where), where, path)


def _converted(path: Path, format: str, copy: Path) -> Iterator[tuple[str, int, int, Trajectory]]:
    offset = 0
    with copy.open("wb") as file:
        for where, row in find_format(format, path).read(path):
            record = row.to_record(_folder(path))
            line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
            file.write(line)
            yield where, offset, len(line), row
            offset += len(line)


def _refuse_doubles(ids: np.ndarray, path: Path, format: str) -> None:
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not len(same):
        return
    first, second = (int(row) for row in order[same[0] : same[0] + 2])
    found = itertools.islice(find_format(format, path).read(path), first, second + 1)
    (before, row), *_, (where, _) = found
    raise UserError(f"{where}: id {row.id!r} stands at {before} already")


def _folder(path: Path) -> Path:
    """Which the images' paths are relative to."""
    return path if path.is_dir() else path.parent


def _state(path: Path) -> list[str]:
    """What an index is of: the file or the folder's files as they are, and the code that reads."""
    if str(path).startswith(HUB):
        return [hub_dataset(str(path))._fingerprint, _readers()]
    try:
        files = sorted(path.iterdir()) if os.path.isdir(path) else [path]
        found = [(file.name, file.stat()) for file in files if os.path.isfile(file)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return [_readers(), *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found)]


@cache
def _readers() -> str:
    """A digest of the modules that read: another reader makes another index."""
    return _digest(*(file.read_text() for file in sorted(Path(__file__).parent.rglob("*.py"))))


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=12).hexdigest()
