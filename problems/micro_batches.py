"""A step over several micro-batches: its numbers, and the batches of its hypergradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dreamprm.data.batches import to_device
from dreamprm.errors import UserError

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem


def mean_stats(stats: Sequence[dict[str, Any]], shares: Sequence[float]) -> dict[str, Any]:
    """The numbers of several micro-batches as those of one; what is no number is the last one's.

    Args:
        stats: of every micro-batch, by name.
        shares: what each counts; 1 in sum.
    """
    mean = dict(stats[-1])
    for name in numbers(mean) if len(stats) > 1 else ():
        pairs = zip(stats, shares, strict=True)
        mean[name] = sum(float(each[name]) * share for each, share in pairs)
    return mean


def numbers(stats: dict[str, Any]) -> list[str]:
    """The names of what is a single number."""
    return [
        name
        for name, value in stats.items()
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    ]


def hypergradient_batches(problem: Problem) -> list[Any]:
    """The micro-batches of a problem's last step, or its first ``hypergradient_batch_size`` items.

    Raises:
        UserError: the data loader cannot give its last items again.
    """
    size = problem.config.hypergradient_batch_size
    if not size:
        return problem.batches
    recent = getattr((problem.train_data_loader or (None,))[0], "recent", None)
    if recent is None:
        raise UserError(
            f"hypergradient_batch_size of problem {problem.name!r} needs a loader with recent(), "
            "as BatchStream has"
        )
    return to_device(recent(len(problem.batches), size), problem.device)
