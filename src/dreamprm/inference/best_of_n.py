"""How right the best of N is, in expectation over random N of a question's candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


def sizes(candidates: int) -> list[int]:
    """1, 2, 4, … up to all candidates."""
    powers = [2**k for k in range(candidates.bit_length()) if 2**k < candidates]
    return [*powers, candidates]


@lru_cache(maxsize=1024)
def top_chances(candidates: int, n: int) -> tuple[float, ...]:
    """The chance of each place in a ranking to be the best of a random n-subset.

    C(K − 1 − r, n − 1) / C(K, n) for place r, counted from 0: the others are all from behind it.
    """
    all_subsets = math.comb(candidates, n)
    return tuple(math.comb(candidates - 1 - r, n - 1) / all_subsets for r in range(candidates))


def expected_best(scores: Sequence[float], right: Sequence[bool], n: int) -> float:
    """The chance that the best-scored of a random n-subset is right; exact.

    Args:
        scores: of the candidates, of which the first of equals is taken.
        right: whether each is.
        n: candidates in a subset; all where there are fewer.
    """
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chances = top_chances(len(scores), min(n, len(scores)))
    return math.fsum(chance for i, chance in zip(order, chances, strict=True) if right[i])
