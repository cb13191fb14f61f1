"""The one exception for what the user can put right; on the command line, exit status 2."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeGuard


class UserError(ValueError):
    """The user's input is wrong; the message names what was found and what was expected."""


SHOWN = 80  # characters of a value that a message repeats


def shown(value: object) -> str:
    """A value as a message repeats it: cut short where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def need_positive(name: str, value: object) -> None:
    """Refuses an option that is not a number of more than 0.

    Raises:
        UserError: names the option and what was found.
    """
    if not _is_number(value) or not value > 0:
        raise UserError(f"{name} is {value!r}, expected more than 0")


def need_at_least(name: str, value: object, least: float) -> None:
    """Refuses an option that is not a number of at least ``least``.

    Raises:
        UserError: names the option and what was found.
    """
    if not _is_number(value) or not value >= least:
        raise UserError(f"{name} is {value!r}, expected at least {least}")


def need_whole(name: str, value: object, at_least: int) -> None:
    """Refuses an option that is not a whole number of at least ``at_least``.

    Raises:
        UserError: names the option and what was found.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{name} is {value!r}, expected a whole number of at least {at_least}")


def unknown_name(kind: str, found: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """One message for a name that is not known, with the nearest right one.

    Args:
        kind: what the name stands for, e.g. ``"hypergradient method"``.
        found: the name as given.
        known: the names that would have been right.
        also: more of them, too many to list.
    """
    names = sorted(known)
    nearest = get_close_matches(found, [*names, *also], n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"unknown {kind} {found!r}: {hint}known are {', '.join(names)}"
