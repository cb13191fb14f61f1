"""How sure a mean over questions is, and a difference between two models on the same questions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_CELLS = 4_000_000  # counts that are held at once


def bootstrap_counts(size: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each of ``size`` items is in each of ``draws`` resamples, in chunks [b, size].

    A function of its arguments, so that what is resampled with the same ones is paired.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, min(draws, _CELLS // size))
    for first in range(0, draws, chunk):
        count = min(chunk, draws - first)
        yield rng.multinomial(size, np.full(size, 1 / size), size=count).astype(float)


def bootstrap_means(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """The means of resamples of the rows: [Q, R] gives [draws, R]."""
    parts = [counts @ values / len(values) for counts in bootstrap_counts(len(values), draws, seed)]
    return np.concatenate(parts) if parts else np.empty((0, values.shape[1]))


def interval(samples: NDArray[np.float64]) -> tuple[float, float] | None:
    """The percentile interval of bootstrap samples, NaN left out; None where there is none."""
    found = samples[~np.isnan(samples)]
    if not len(found):
        return None
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One way of picking against another, on the same questions.

    Attributes:
        difference: of their accuracies.
        low, high: its bootstrap interval; None without resamples.
        p_bootstrap: two-sided, of the paired bootstrap; None without resamples.
        only_first: questions that the first alone gets right.
        only_second: questions that the second alone gets right.
        p_mcnemar: two-sided, of the exact test of McNemar.
    """

    difference: float
    low: float | None
    high: float | None
    p_bootstrap: float | None
    only_first: int
    only_second: int
    p_mcnemar: float

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], draws: int, seed: int
) -> Difference:
    """Compares two ways of picking, question by question.

    Args:
        first: whether the first one's pick is right, for each question.
        second: the same of the second.
        draws: resamples of the questions.
        seed: of the resamples.
    """
    gaps = np.array(first, dtype=float) - np.array(second, dtype=float)
    samples = bootstrap_means(gaps[:, None], draws, seed)[:, 0]
    found = interval(samples)
    only_first, only_second = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Difference(
        difference=float(gaps.sum()) / len(gaps),
        low=found[0] if found else None,
        high=found[1] if found else None,
        p_bootstrap=_two_sided(samples) if draws else None,
        only_first=only_first,
        only_second=only_second,
        p_mcnemar=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided test: of n discordant pairs, is either side as likely (McNemar 1947)?"""
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def _two_sided(samples: NDArray[np.float64]) -> float:
    """Twice the smaller share of resamples on either side of 0, the observed one counted in."""
    sides = ((samples <= 0).sum(), (samples >= 0).sum())
    return float(min(1.0, 2 * (1 + min(sides)) / (1 + len(samples))))
