"""Texts of unknown content, made such that a page and a plot can hold them."""

from __future__ import annotations

import re

# What neither HTML nor UTF-8 can hold: control characters and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """The text with a replacement character for all that cannot be shown."""
    return _UNPRINTABLE.sub("\ufffd", text)


def shortened(text: str, length: int) -> str:
    """A text on one line, with its middle left out where it is longer than ``length``."""
    text = " ".join(printable(text).split())
    if len(text) <= length:
        return text
    tail = length // 2  # of paths, the end tells more
    return f"{text[: length - tail - 1]}…{text[-tail:]}"
