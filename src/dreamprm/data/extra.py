"""Columns of a user's data that are none of a format's own: kept as they are, told from typos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from dreamprm.errors import UserError, unknown_name

NEAR = 0.8  # of difflib's ratio: from there on, one name could be a misspelling of another


@lru_cache(maxsize=4096)
def near_names(key: str, own: tuple[str, ...]) -> tuple[str, ...]:
    """The format's own keys that a key could be a misspelling of."""
    return tuple(get_close_matches(key, own, n=len(own), cutoff=NEAR))


def extra_columns(record: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
    """The part of a record under keys that are not the format's own.

    Args:
        record: one row.
        own: the keys of the format.

    Raises:
        UserError: a key is a near miss of one of ``own`` that the record does not have, or its
            value is nothing that JSON can hold.
    """
    found: dict[str, Any] = {}
    for key, value in record.items():
        if key in own:
            continue
        if any(name not in record for name in near_names(key, own)):
            raise UserError(unknown_name("key", key, own))
        if value is not None and not isinstance(value, str | int | float):
            _need_json(key, value)
        found[key] = value
    return found


def _need_json(key: str, value: Any) -> None:
    """Refuses a date, bytes and what else Parquet can hold, or what is nested too deep to write."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"column {key!r} holds {type(value).__name__}, expected what JSON can hold: {error}"
        ) from error
