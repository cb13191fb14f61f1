"""JSON Lines and JSON arrays, one object in memory at a time, and what is wrong with their text.

JSON is read here and not by ``datasets``, which names no line, turns values into the type of their
column, and passes unknown and doubled keys over.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamprm.errors import UserError, shown

_FOREIGN = {
    b"\xff\xfe": "UTF-16 text, expected UTF-8",
    b"\xfe\xff": "UTF-16 text, expected UTF-8",
    b"\x1f\x8b": "compressed by gzip: decompress it first",
    b"PK": "a zip archive: decompress it first",
    b"PAR1": "Parquet: name it .parquet",
}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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
            line = self.line + self.text.count("\n")
            found = f"{error.reason}, after line {line}"
            raise UserError(f"{self.path} is not UTF-8 text: {found}") from error
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


def json_array(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Place and object of every element of an array, or the error where it is no object.

    Raises:
        UserError: there is no such file, or it cannot be read, or is no JSON array.
    """
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
            found_row: dict[str, Any] | UserError
            try:
                found_row = _object(row, text.encode("utf-8", "surrogatepass"), where)
            except UserError as error:
                found_row = error
            yield where, found_row
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


def refuse_no_file(path: Path) -> None:
    """Refuses what is not a file.

    Raises:
        UserError: there is nothing, or something else, or it may not be looked at.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: NUL
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder, expected a file")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no file but a device or a pipe, expected a file")


def _refuse_foreign(path: Path) -> None:
    refuse_no_file(path)
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for mark, what in _FOREIGN.items():
        if begin.startswith(mark):
            raise UserError(f"{path} is {what}")
