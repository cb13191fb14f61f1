"""Solutions out of labelled prefixes: texts that begin with each other are one solution."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any


def longest(prefixes: Mapping[str, Any]) -> list[str]:
    """The texts that no other text continues, in the given order."""
    ordered = sorted(prefixes)
    inner = set()
    for place, text in enumerate(ordered, start=1):
        for other in itertools.islice(ordered, place, None):
            # In sorted order the texts that begin with one follow it at once.
            if not other.startswith(text):
                break
            if continues(other, text):
                inner.add(text)
                break
    return [text for text in prefixes if text not in inner]


def continues(text: str, prefix: str) -> bool:
    """Whether a text goes on where a step of it ends: "x = 12" does not continue "x = 1"."""
    if not text.startswith(prefix):
        return False
    return len(text) == len(prefix) or text[len(prefix)].isspace() or prefix[-1:].isspace()


def steps_and_labels(
    solution: str, prefixes: Mapping[str, float], cuts: Iterable[int] = ()
) -> tuple[list[str], list[float | None]]:
    """A solution's steps, which end where prefixes of it end, with the prefixes' labels.

    Args:
        solution: its whole text.
        prefixes: texts and the label of the last step of each; others than its own are passed over.
        cuts: places where a step ends too; it has no label where no prefix ends.
    """
    labels = {len(text): label for text, label in prefixes.items() if continues(solution, text)}
    steps: list[str] = []
    step_labels: list[float | None] = []
    begin = 0
    for end in sorted({*labels, *cuts, len(solution)} - {0}):
        step = solution[begin:end].strip()
        if step:
            steps.append(step)
            step_labels.append(labels.get(end))
        elif end in labels and steps and step_labels[-1] is None:
            step_labels[-1] = labels[end]
        begin = end
    return steps, step_labels
