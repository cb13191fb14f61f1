"""Reads what ``dreamprm evaluate --out`` wrote."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from dreamprm.data.rows import need
from dreamprm.errors import UserError
from dreamprm.evaluation.result import SCHEMA, Evaluation

_hints = cache(get_type_hints)


def read_evaluation(path: Path) -> Evaluation:
    """Reads a file of ``dreamprm evaluate``.

    Raises:
        UserError: there is none, or it is something else.
    """
    if not path.is_file():
        raise UserError(f"there is no evaluation {path}; dreamprm evaluate --out writes one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = found.get("schema") if isinstance(found, dict) else None
        raise UserError(f"{path}: schema is {schema!r}, expected {SCHEMA!r}")
    result: Evaluation = _object(Evaluation, found, str(path))
    for i, data in enumerate(result.selection):
        curves = [curve for model in data.models.values() for curve in model.rules.values()]
        for c in [*data.baselines.values(), *curves]:
            if {len(c.accuracy), len(c.low), len(c.high)} != {len(data.n)}:
                raise UserError(
                    f"{path}: selection {i}: expected {len(data.n)} accuracies, one for each N"
                )
    return result


def _object(kind: Any, row: Any, where: str) -> Any:
    """An object of the file as a dataclass."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}, expected an object")
    hints = _hints(kind)
    keys = [field.name for field in fields(kind) if field.name in row or field.default is MISSING]
    values = {key: need(row, key, _types(hints[key]), where) for key in keys}
    return kind(**{key: _value(hints[key], value, where, key) for key, value in values.items()})


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    if isinstance(hint, UnionType):  # with None, as are all of them
        return None if value is None else _value(get_args(hint)[0], value, where, name)
    if is_dataclass(hint):
        return _object(hint, value, where)
    if not isinstance(value, _types(hint)):
        raise UserError(f"{where}: found {value!r} in {name}, expected {hint.__name__}")
    kinds = get_args(hint)
    if isinstance(value, list):
        return [_value(kinds[0], v, f"{where}: {name} {i}", name) for i, v in enumerate(value)]
    if isinstance(value, dict):
        return {key: _value(kinds[1], member, where, name) for key, member in value.items()}
    return value


@cache
def _types(hint: Any) -> tuple[type, ...]:
    """What ``json`` reads for a type."""
    if isinstance(hint, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _types(part))
    if is_dataclass(hint):
        return (dict,)
    return (int, float) if hint is float else (get_origin(hint) or hint,)
