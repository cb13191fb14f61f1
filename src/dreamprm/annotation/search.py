"""Which prefixes of a solution are completed, and the labels that follow from the counts.

Prefix i is the first i of S steps. A whole solution needs no completion: with a final answer, its
value is the outcome.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

Counts = dict[int, tuple[int, int]]  # of prefix i: completions that ended right, and completions
Search = Generator[list[int], Counts, "Labels"]


@dataclass(frozen=True)
class Labels:
    """What is known of the steps of one solution.

    Attributes:
        labels: p_i in [0, 1] of each step, None where it was not found out.
        counts: right and all completions of each prefix that was completed.
    """

    labels: list[float | None]
    counts: Counts


def all_prefixes(steps: int, outcome: bool | None) -> Search:
    """Completes every prefix: p_i = right / M, and p_S the outcome (DreamPRM, arXiv 2505.20241).

    Args:
        steps: S.
        outcome: of the solution; None where it came to no final answer, so that the last prefix is
            one like the others.

    Yields:
        The prefixes to complete now; is sent their counts.

    Returns:
        The labels.
    """
    asked = list(range(1, steps + (outcome is None)))
    counts = (yield asked) if asked else {}
    return _labels(steps, outcome, counts)


def first_error(steps: int, outcome: bool | None) -> Search:
    """Looks for the first step with which no completion ends right (OmegaPRM, arXiv 2406.06592).

    It is assumed that a prefix from which none of M completions ends right stays so with more
    steps, and that one from which some do holds no such step. Then halving finds the first wrong
    step among S in at most ceil(log2 S) prefixes. Labels:

    - of a prefix that was completed: right / M;
    - from the first wrong step on: 0, by the assumption;
    - before it, not completed: None; that it is above 0 is known, but not the number;
    - all of a right solution: 1, as the solution is a completion of each of its prefixes; nothing
      is sampled.

    Args, yields and returns as :func:`all_prefixes`.
    """
    if outcome:
        return Labels([1.0] * steps, {})
    # Prefix `good` can end right, `bad` cannot; without an outcome, no prefix is known to be bad.
    good, bad = 0, steps + (outcome is None)
    counts: Counts = {}
    while bad - good > 1:
        middle = (good + bad) // 2
        counts |= yield [middle]
        good, bad = (middle, bad) if counts[middle][0] else (good, middle)
    found = _labels(steps, outcome, counts)
    after = [None] * (bad - 1) + [0.0] * (steps - bad + 1)
    return Labels([b if a is None else a for a, b in zip(found.labels, after, strict=True)], counts)


SEARCHES = {"all": all_prefixes, "first_error": first_error}


def _labels(steps: int, outcome: bool | None, counts: Counts) -> Labels:
    labels: list[float | None] = [None] * steps
    for prefix, (right, total) in counts.items():
        labels[prefix - 1] = right / total
    if outcome is not None and steps:
        labels[-1] = float(outcome)
    return Labels(labels, counts)
