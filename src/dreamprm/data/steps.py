"""Cutting a solution's text into steps; no character but surrounding white space is lost."""

from __future__ import annotations

import itertools
import re

# "Step 1:", "step 2.", "**Step 3**", "### Step 4" at the start of a line.
STEP_HEADING = re.compile(r"^[ \t]*(?:#+[ \t]*)?(?:\*\*|__)?step[ \t:]*\d+\b", re.I | re.M)
_NUMBERED = re.compile(r"^[ \t]*(?:\*\*)?\d{1,2}[.)](?=[ \t])", re.M)


def split_steps(text: str) -> list[str]:
    """The steps of a solution: at "Step n" headings, else at numbered lines, else at blank lines.

    What stands before the first heading is a step of its own.
    """
    for heading in (STEP_HEADING, _NUMBERED):
        starts = [match.start() for match in heading.finditer(text)]
        if len(starts) >= 2 or (starts and heading is STEP_HEADING):
            return cut(text, starts)
    return [part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def cut(text: str, starts: list[int]) -> list[str]:
    """The pieces of a text between the given places, stripped, empty ones left out."""
    edges = [0, *starts, len(text)]
    pieces = (text[a:b].strip() for a, b in itertools.pairwise(edges))
    return [piece for piece in pieces if piece]
