"""Turns of a conversation, as LLaVA and InternVL write them: ``{"from", "value"}``."""

from __future__ import annotations

from typing import Any, NamedTuple

from dreamprm.data.rows import need
from dreamprm.errors import UserError


class Turn(NamedTuple):
    """Who says what."""

    speaker: str
    text: str


def turns(row: dict[str, Any], where: str) -> list[Turn]:
    """The turns of a row's ``conversations``, without a system turn at the beginning.

    Raises:
        UserError: they are no list of objects with texts ``from`` and ``value``.
    """
    found = []
    for turn in need(row, "conversations", list, where):
        if not isinstance(turn, dict):
            raise UserError(f"{where}: a turn is {type(turn).__name__}, expected an object")
        found.append(Turn(need(turn, "from", str, where), need(turn, "value", str, where)))
    return found[1:] if found and found[0].speaker == "system" else found
