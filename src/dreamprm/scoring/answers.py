"""Final answers that differ in writing only, made equal."""

from __future__ import annotations

import re
from decimal import Decimal

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_LETTER = re.compile(r"\(?([a-z])[).]?")
# More digits than any answer has; a longer number stays text.
_DIGITS = 50


def normalised_answer(answer: str | None) -> str | None:
    """An answer without case, white space at its ends and doubled, ``$``, and a closing full stop.

    Numbers lose thousands commas and zeros that say nothing (1,000.0 is 1000), letters of a choice
    their brackets. Nothing is calculated: 1/2 and 0.5 differ.

    Returns:
        the answer; None where nothing is left of it.
    """
    if answer is None:
        return None
    text = " ".join(answer.replace("$", " ").split()).casefold()
    text = text.removesuffix(".").strip()
    text = _THOUSANDS.sub("", text)
    if _NUMBER.fullmatch(text) and len(text) <= _DIGITS:
        number = Decimal(text)
        text = f"{number.normalize():f}" if number else "0"
    elif letter := _LETTER.fullmatch(text):
        text = letter[1]
    return text or None
