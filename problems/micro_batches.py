"""The numbers of a step that was taken over several micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def mean_stats(stats: Sequence[dict[str, Any]], shares: Sequence[float]) -> dict[str, Any]:
    """The numbers of several micro-batches as those of one; what is no number is the last one's.

    Args:
        stats: of every micro-batch, by name.
        shares: what each counts; 1 in sum.
    """
    mean = dict(stats[-1])
    for name, value in mean.items() if len(stats) > 1 else ():
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            pairs = zip(stats, shares, strict=True)
            mean[name] = sum(float(each[name]) * share for each, share in pairs)
    return mean
