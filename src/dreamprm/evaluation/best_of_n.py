"""How right the best of N is, in expectation over random N of a question's candidates.

By ranking it is exact in closed form, and so is pass@N. Votes are counted over all N-subsets where
there are at most ``SUBSETS`` of them, else over as many drawn at random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dreamprm.scoring.selection import vote_values

SUBSETS = 20_000


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


def pass_at(right: Sequence[bool], n: int) -> float:
    """The chance that some candidate of a random n-subset is right: the unbiased pass@n.

    1 − C(K − c, n) / C(K, n) with c right ones of K (Chen et al. 2021, arXiv 2107.03374).
    """
    n = min(n, len(right))
    every = math.comb(len(right), n)
    return (every - math.comb(len(right) - sum(right), n)) / every


def is_exact(candidates: int, n: int) -> bool:
    """Whether votes of n-subsets are counted over all of them."""
    return math.comb(candidates, min(n, candidates)) <= SUBSETS


def expected_vote(
    weights: Sequence[float],
    groups: NDArray[np.int64],
    right: Sequence[bool],
    n: int,
    seed: Sequence[int],
) -> float:
    """The chance that the vote of a random n-subset is for a right answer.

    Args:
        weights: of the candidates' votes, in [0, 1].
        groups: the numbers of their answers, −1 for none.
        right: whether each is.
        n: candidates in a subset; all where there are fewer.
        seed: of the subsets where they are drawn, see :func:`is_exact`.
    """
    members = _subsets(len(right), n, seed)
    picks = vote_values(members, np.asarray(weights, dtype=float), groups).argmax(axis=1)
    return int(np.asarray(right)[picks].sum()) / len(picks)


def expected_majority(
    groups: NDArray[np.int64], right: Sequence[bool], n: int, seed: Sequence[int]
) -> float:
    """The same of an unweighted vote whose ties are broken at random, in expectation.

    Of answers that are equally frequent each is as likely, and so is each candidate that gives one.
    """
    members = _subsets(len(right), n, seed)
    values = vote_values(members, np.ones(len(right)), groups)
    tied = values == values.max(axis=1, keepdims=True)
    shares = (tied & np.asarray(right)).sum(axis=1) / tied.sum(axis=1)
    return math.fsum(shares) / len(shares)


def _subsets(candidates: int, n: int, seed: Sequence[int]) -> NDArray[np.bool_]:
    """All n-subsets, or as many drawn as there may be; [s, candidates]."""
    n = min(n, candidates)
    members = _all_subsets(candidates, n)
    if members is None:
        order = np.random.default_rng((*seed, n)).random((SUBSETS, candidates)).argsort(axis=1)
        members = order < n
    return members


@lru_cache(maxsize=256)
def _all_subsets(candidates: int, n: int) -> NDArray[np.bool_] | None:
    if not is_exact(candidates, n):
        return None
    subsets = np.array(list(itertools.combinations(range(candidates), n)))
    members = np.zeros((len(subsets), candidates), dtype=bool)
    np.put_along_axis(members, subsets, True, axis=1)
    return members
