"""The rows of a JSON Lines, JSON or Parquet file, each with the place where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamprm.errors import UserError


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file with its place, ``file:line`` or ``file: row n``, counted from 1.

    A byte order mark, CRLF and blank lines are passed over.

    Raises:
        UserError: the file is missing, of another kind, no UTF-8, no JSON, or a row no object.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".parquet":
        from datasets import Dataset  # a second to import, for one kind of file

        for number, row in enumerate(Dataset.from_parquet(str(path)), start=1):
            # Parquet has a value for every column of every row.
            yield f"{path}: row {number}", {k: v for k, v in row.items() if v is not None}
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix == ".json":
        rows = _parse(text, str(path))
        if not isinstance(rows, list):
            raise UserError(f"{path} holds {type(rows).__name__}, expected an array of objects")
        places = [f"{path}: row {number}" for number in range(1, len(rows) + 1)]
    elif path.suffix == ".jsonl":
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        places = [f"{path}:{number}" for number, _ in lines]
        rows = [_parse(line, where) for where, (_, line) in zip(places, lines, strict=True)]
    else:
        raise UserError(f"{path} ends in {path.suffix!r}, expected .jsonl, .json or .parquet")
    for where, row in zip(places, rows, strict=True):
        if not isinstance(row, dict):
            raise UserError(f"{where}: found {type(row).__name__}, expected an object")
        yield where, row


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
        raise UserError(f"{where}: {key} is {value!r}, expected {names}")
    return value


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f" (line {error.lineno})" if error.lineno > 1 else ""
        raise UserError(f"{where}: not JSON: {error.msg}{at}") from error
