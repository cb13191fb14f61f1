"""Checks of a config's values, by their keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from dreamprm.errors import UserError, unknown_name


def value_of(config: Any, key: str) -> Any:
    """The value under a key with dots."""
    return reduce(getattr, key.split("."), config)


def check_choices(config: Any, where: str, choices: Mapping[str, Iterable[str]]) -> None:
    """Refuses a value that is none of its key's choices.

    Raises:
        UserError: names the key and what was found, with the nearest right one.
    """
    for key, known in choices.items():
        value = value_of(config, key)
        if value not in known:
            raise UserError(f"{where}: " + unknown_name(f"value of {key}", str(value), known))


def check_numbers(config: Any, where: str, least: float, keys: Iterable[str]) -> None:
    """Refuses numbers below the least.

    Raises:
        UserError: names the key and what was found.
    """
    for key in keys:
        value = value_of(config, key)
        if value < least:
            raise UserError(f"{where}: {key} is {value}, expected at least {least}")
