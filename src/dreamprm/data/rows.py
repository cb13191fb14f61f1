"""The rows of JSON Lines, JSON, Parquet and hub data sets, each with the place where it stands.

One row at a time is in memory. JSON is read here and not by ``datasets``, which names no line,
turns values into the type of its column, and passes unknown and doubled keys over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from dreamprm.errors import UserError, shown

HUB = "hub:"  # begins the name of a data set that is no file
KINDS = (".jsonl", ".json", ".parquet")

_FOREIGN = {
    b"\xff\xfe": "UTF-16 text, expected UTF-8",
    b"\xfe\xff": "UTF-16 text, expected UTF-8",
    b"\x1f\x8b": "compressed by gzip: decompress it first",
    b"PK": "a zip archive: decompress it first",
    b"PAR1": "Parquet: name it .parquet",
}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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


def json_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, place in bytes and text of every line of a file that is not blank.

    Raises:
        UserError: there is no such file, or it cannot be read, or is not text.
    """
    _refuse_foreign(path)
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                begin, offset = offset, offset + len(line)
                if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                    begin, line = 3, line[3:]
                if not line.isspace() and line:
                    yield number, begin, line
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """The object that stands on a line.

    Raises:
        UserError: it is not UTF-8, no JSON or no object, or has a key twice.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at position {error.start}"
        raise UserError(f"{where}: not UTF-8 text: {found}") from error
    if b"\0" in line:
        raise UserError(f"{where}: holds a NUL byte, expected text")
    try:
        row = _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        hint = ""
        if text.strip() in ("{", "["):
            hint = " (.jsonl has a whole object on every line; an array of objects is .json)"
        raise UserError(f"{where}: not JSON: {_fault(error)}{hint}") from error
    return _object(row, line, where)


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
    _refuse_no_file(path)
    if path.suffix not in KINDS:
        raise UserError(f"{path} ends in {path.suffix!r}, expected .jsonl, .json or .parquet")
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".json":
        yield from _array(path)
    else:
        for number, _, line in json_lines(path):
            where = f"{path}:{number}"
            try:
                yield where, parse_object(line, where)
            except UserError as error:
                yield where, error


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


class _ArrayText:
    """The text of a JSON array, of which no more is in memory than its next element takes."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open(encoding="utf-8-sig", newline="")
        self.text, self.at, self.line = "", 0, 1

    def more(self) -> bool:
        """Reads on; False at the end of the file."""
        self.line += self.text.count("\n", 0, self.at)
        try:
            chunk = self.file.read(max(2**16, len(self.text)))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is not UTF-8 text: {error.reason}") from error
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> tuple[Any, str]:
        """The next value and its text."""
        while True:
            try:
                found, end = _DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                # Cut short by the end of the piece in memory, or wrong: more of it will tell.
                if isinstance(error, _DoubleKey) or not self.more():
                    raise self.wrong(_fault(error), getattr(error, "pos", self.at)) from error
                continue
            text, self.at = self.text[self.at : end], end
            return found, text

    def wrong(self, fault: str, at: int) -> UserError:
        """The error of text that is no array of objects."""
        line = self.line + self.text.count("\n", 0, at)
        return UserError(f"{self.path}: not JSON: {fault} (line {line})")


def _array(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    _refuse_foreign(path)
    source = _ArrayText(path)
    with source.file:
        if source.peek() not in ("[", ""):
            found, _ = source.value()
            if source.peek():
                raise source.wrong("more than one value; one object a line is .jsonl", source.at)
            raise UserError(f"{path} holds {type(found).__name__}, expected an array of objects")
        if not source.peek():
            return
        source.at += 1
        number = 0
        while number or source.peek() != "]":
            number += 1
            where = f"{path}: row {number}"
            source.peek()
            row, text = source.value()
            try:
                yield where, _object(row, text.encode("utf-8", "surrogatepass"), where)
            except UserError as error:
                yield where, error
            following = source.peek()
            if following == "]":
                break
            if following != ",":
                raise source.wrong(f"expected ',' or ']' after row {number}", source.at)
            source.at += 1
        source.at += 1
        if source.peek():
            raise source.wrong("text after the array", source.at)


def _object(row: Any, text: bytes, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: found {type(row).__name__}, expected an object")
    if _SURROGATE.search(text):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(f"{where}: {half} is half of a surrogate pair, no character") from error
    return row


class _DoubleKey(ValueError):
    """A key stands twice in one object; JSON readers would quietly take the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _DoubleKey(f"key {shown(twice)} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return str(error).partition(";")[0]  # for huge numbers, Python goes on with advice


def _refuse_no_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file")
    if not path.is_file():
        raise UserError(f"there is no file {path}")


def _refuse_foreign(path: Path) -> None:
    _refuse_no_file(path)
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for mark, what in _FOREIGN.items():
        if begin.startswith(mark):
            raise UserError(f"{path} is {what}")
