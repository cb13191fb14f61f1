"""How sure a mean over questions is, and a difference between two models on the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from dreamprm.errors import UserError

CONFIDENCE = 0.95
_CELLS = 4_000_000  # counts that are held at once


def bootstrap_counts(size: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each of ``size`` items is in each of ``draws`` resamples, in chunks [b, size].

    A function of its arguments, so that what is resampled with the same ones is paired. None for
    fewer than two items: one alone says nothing of how another would differ.
    """
    if size < 2:
        return
    rng = np.random.default_rng(seed)
    chunk = max(1, min(draws, _CELLS // size))
    for first in range(0, draws, chunk):
        count = min(chunk, draws - first)
        yield rng.multinomial(size, np.full(size, 1 / size), size=count).astype(float)


def bootstrap_means(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """The means of resamples of the rows: [Q, R] gives [draws, R]."""
    parts = [counts @ values / len(values) for counts in bootstrap_counts(len(values), draws, seed)]
    return np.concatenate(parts) if parts else np.empty((0, values.shape[1]))


def interval(samples: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of bootstrap samples, NaN left out; of Nones where there is none."""
    found = samples[~np.isnan(samples)]
    if not len(found):
        return None, None
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """One way of picking against another, on the same questions.

    Attributes:
        first, second: a model, and another one or a baseline.
        rule: by which models pick.
        difference: of their accuracies.
        low, high: its bootstrap interval; None without resamples, as of a single question.
        p_bootstrap: two-sided, of the paired bootstrap; None without resamples, and where the same
            one is right alone on every question, so that no resample can say otherwise.
        only_first: questions that the first alone gets right.
        only_second: questions that the second alone gets right.
        p_mcnemar: two-sided, of the exact test of McNemar.
    """

    first: str
    second: str
    rule: str
    difference: float
    low: float | None
    high: float | None
    p_bootstrap: float | None
    only_first: int
    only_second: int
    p_mcnemar: float


def paired_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    draws: int,
    seed: int,
    names: tuple[str, str, str] = ("first", "second", ""),
) -> Comparison:
    """Compares two ways of picking, question by question.

    Args:
        first: whether the first one's pick is right, for each question.
        second: the same of the second.
        draws: resamples of the questions.
        seed: of the resamples.
        names: of the two, and of the rule.

    Raises:
        UserError: there are no questions, or not as many of the one as of the other.
    """
    if not len(first) or len(first) != len(second):
        raise UserError(
            f"a comparison got {len(first)} and {len(second)} picks, expected one of each for the "
            "same questions, at least one"
        )
    gaps = np.array(first, dtype=float) - np.array(second, dtype=float)
    samples = bootstrap_means(gaps[:, None], draws, seed)[:, 0]
    low, high = interval(samples)
    only_first, only_second = int((gaps > 0).sum()), int((gaps < 0).sum())
    one_sided = len(gaps) in (only_first, only_second)
    return Comparison(
        *names,
        difference=float(gaps.sum()) / len(gaps),
        low=low,
        high=high,
        p_bootstrap=_two_sided(samples) if len(samples) and not one_sided else None,
        only_first=only_first,
        only_second=only_second,
        p_mcnemar=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided test: of n discordant pairs, is either side as likely (McNemar 1947)?

    P(X ≤ k) of the binomial distribution is the regularised incomplete beta function
    I_½(n − k, k + 1) (Abramowitz and Stegun 26.5.24): right to about 1e-12 at any n.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * float(betainc(n - fewer, fewer + 1, 0.5))) if n else 1.0


def _two_sided(samples: NDArray[np.float64]) -> float:
    """Twice the smaller share of resamples on either side of 0, the observed one counted in."""
    sides = ((samples <= 0).sum(), (samples >= 0).sum())
    return float(min(1.0, 2 * (1 + min(sides)) / (1 + len(samples))))
