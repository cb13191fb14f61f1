"""The rows of JSON Lines, JSON, Parquet and hub data sets, each with the place where it stands.

One row at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from dreamprm.data.json_rows import json_array, json_lines, parse_object, refuse_no_file
from dreamprm.errors import UserError, shown

HUB = "hub:"  # begins the name of a data set that is no file
KINDS = (".jsonl", ".json", ".parquet")

Parsed = TypeVar("Parsed")


class Collector:
    """Takes the errors of rows where otherwise the first would be raised.

    Attributes:
        report: is called with the place and the error of every wrong row.
        skip: places of rows that are passed over.
        last: the place of the row that was read last.
    """

    def __init__(self, report: Callable[[str, UserError], None]) -> None:
        self.report = report
        self.skip: set[str] = set()
        self.last = ""

    def add(self, where: str, error: UserError) -> None:
        """Reports the error of a row, which from now on is passed over."""
        self.skip.add(where)
        self.report(where, error)


_collector: ContextVar[Collector | None] = ContextVar("collector", default=None)


@contextmanager
def collecting(collector: Collector) -> Iterator[None]:
    """Within it, ``read_rows`` gives wrong rows to the collector and goes on."""
    token = _collector.set(collector)
    try:
        yield
    finally:
        _collector.reset(token)


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file with its place, ``file:line`` or ``file: row n``, counted from 1.

    A byte order mark, CRLF and blank lines are passed over. ``hub:NAME`` or ``hub:NAME:SPLIT`` is
    a data set of the hub, or a folder that ``datasets.load_dataset`` reads.

    Raises:
        UserError: the file is missing, of another kind, no UTF-8, no JSON, or, but within
            ``collecting``, a row is wrong.
    """
    collector = _collector.get()
    for where, row in _rows(path):
        if collector is not None and where in collector.skip:
            continue
        if isinstance(row, UserError):
            if collector is None:
                raise row
            collector.add(where, row)
            continue
        if collector is not None:
            collector.last = where
        yield where, row


def parsed_rows(
    path: Path, parse: Callable[[dict[str, Any], str, Path], Parsed]
) -> Iterator[tuple[str, Parsed]]:
    """What each row of a file is, with its place.

    Args:
        path: as of ``read_rows``.
        parse: makes it of the row, the place and ``path``.

    Raises:
        UserError: as ``read_rows`` and ``parse``; within ``collecting``, no row's.
    """
    collector = _collector.get()
    for where, row in read_rows(path):
        try:
            found = parse(row, where, path)
        except UserError as error:
            if collector is None:
                raise
            collector.add(where, error)
        else:
            yield where, found


def need(row: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A value of a row in somebody's format.

    Raises:
        UserError: it is missing, or of the wrong type.
    """
    if key not in row:
        raise UserError(f"{where}: has no {key!r}")
    value = row[key]
    allowed = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(k.__name__ for k in allowed)
        raise UserError(f"{where}: {key} is {shown(value)}, expected {names}")
    return value


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    if str(path).startswith(HUB):
        yield from _hub(str(path))
        return
    refuse_no_file(path)
    if path.suffix not in KINDS:
        raise UserError(f"{path} ends in {path.suffix!r}, expected .jsonl, .json or .parquet")
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".json":
        yield from json_array(path)
    else:
        for number, _, line in json_lines(path):
            where = f"{path}:{number}"
            row: dict[str, Any] | UserError
            try:
                row = parse_object(line, where)
            except UserError as error:
                row = error
            yield where, row


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowException, parquet  # takes time to import, for one kind of file

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    # Parquet has a value for every column of every row.
                    present = {k: v for k, v in row.items() if v is not None}
                    yield f"{path}: row {number}", present
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        fault = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet after row {number}: {fault}") from error


def hub_dataset(name: str) -> Any:
    """A data set of the hub as a ``datasets.Dataset``, on disk and not in memory.

    Args:
        name: ``hub:NAME`` or ``hub:NAME:SPLIT``; the split is ``train`` where none is given.

    Raises:
        UserError: it cannot be had.
    """
    import datasets  # a second to import, for one kind of source

    repository, _, split = name.removeprefix(HUB).partition(":")
    try:
        return datasets.load_dataset(repository, split=split or "train")
    # Whatever datasets, its loaders and its HTTP client raise: each names the data set's fault.
    except Exception as error:
        fault = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot have {name}, split {split or 'train'!r}: {fault}") from error


def _hub(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    found = hub_dataset(name)
    pictures = [k for k, v in found.features.items() if isinstance(v, datasets.Image)]
    if pictures:
        raise UserError(
            f"{name}: {pictures[0]!r} holds pictures, expected paths: save them as files, and "
            "their paths beside the rows"
        )
    for number, row in enumerate(found, start=1):
        yield f"{name}: row {number}", {k: v for k, v in row.items() if v is not None}
