"""What is wrong with data, counted by kind, with the first places of each kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

PLACES = 5  # that are kept of a kind
KINDS = 1000  # that are told apart

# What differs between two errors of one kind: values and numbers.
_VALUE = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?<=\s)\S*/\S+"""
    r"""|-?\b\d+(?:[.,]\d+)*(?:e[+-]?\d+)?\b|-?\b(?:nan|inf|None|True|False)\b"""
)


@dataclass
class Finding:
    """One kind of fault.

    Attributes:
        severity: ``"error"`` for what must be fixed, else ``"warning"``.
        message: the first one's.
        count: how many there are.
        places: of the first few.
    """

    severity: str
    message: str
    count: int = 0
    places: list[str] = field(default_factory=list)


class Findings:
    """Faults by kind, in the order in which kinds are met."""

    def __init__(self) -> None:
        self.kinds: dict[str, Finding] = {}

    def add(self, severity: str, message: str, where: str | None = None, count: int = 1) -> None:
        """Counts a fault.

        Args:
            severity: ``"error"`` or ``"warning"``.
            message: without the place; those that differ only in values and numbers are one kind.
            where: it is.
            count: how many faults it stands for.
        """
        kind = f"{severity}: {_VALUE.sub('…', message)}"
        if kind not in self.kinds and len(self.kinds) >= KINDS:
            kind, message = f"{severity}: others", "other faults"
        found = self.kinds.setdefault(kind, Finding(severity, message))
        found.count += count
        if where is not None and len(found.places) < PLACES:
            found.places.append(where)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.kinds.values())
