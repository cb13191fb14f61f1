"""Weights that nobody learns from a meta set: what the learned ones are held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.errors import UserError, need_positive
from dreamprm.weighting.fixed import FixedWeights
from dreamprm.weighting.rows import Rows, grouped


class Focal(nn.Module):
    """w_i = (1 − p_i)^γ over its mean in the batch, p_i = e^(−ℓ_i) (Lin et al. 2017).

    Hard samples count more. p is the probability of the label where ℓ is a cross-entropy.

    Args:
        gamma: γ, more than 0.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    @torch.no_grad()
    def forward(self, batch: Any, losses: Tensor) -> Tensor:
        """The weight of every sample, [b]; all are 1 where all losses are 0."""
        weights = -torch.expm1(-losses.clamp(min=0))
        weights = weights**self.gamma
        mean = weights.mean()
        return weights / mean if mean > 0 else torch.ones_like(losses)


class WorstGroup(nn.Module):
    """Group DRO (Sagawa et al. 2020, arXiv 1911.08731, algorithm 1): L = Σ_k q_k L_k.

    At every micro-batch of a step q_k ← q_k e^(η L_k), normalised, for the groups in it, whose mean
    loss L_k is. The weight of a sample is q_k over the share of its group there. Losses without a
    graph are of no step, and leave q as it is.

    Args:
        groups: names of the K groups.
        places: [n], of every training row's group among them.
        rate: η.
    """

    log_q: Tensor

    def __init__(self, groups: Sequence[str], places: Tensor, rate: float) -> None:
        super().__init__()
        self.groups, self.places, self.rate = tuple(groups), places, rate
        self.register_buffer("log_q", torch.full((len(groups),), 1 / len(groups)).log())

    @torch.no_grad()
    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b], by ``batch["index"]`` [b]."""
        if self.log_q.device != losses.device:
            self.to(losses.device)
            self.places = self.places.to(losses.device)
        group = self.places[batch["index"]]
        counts = torch.bincount(group, minlength=len(self.groups))
        if losses.requires_grad:
            sums = torch.zeros_like(self.log_q).index_add(0, group, losses.to(self.log_q))
            self.log_q += self.rate * sums / counts.clamp(min=1)
            self.log_q -= self.log_q.logsumexp(0)
        return (self.log_q.exp()[group] * len(group) / counts[group]).to(losses.dtype)

    def named_weights(self) -> dict[str, float]:
        """K q_k of every group by its name."""
        weights = self.log_q.exp() * len(self.groups)
        return dict(zip(self.groups, weights.tolist(), strict=True))


def focal(rows: Rows, *, gamma: float = 2.0) -> Focal:
    """Samples count by their loss; see :class:`Focal`.

    Args:
        rows: the training rows.
        gamma: γ, more than 0.
    """
    need_positive("weighting_options.gamma", gamma)
    return Focal(gamma)


def worst_group(rows: Rows, *, column: str | None = None, rate: float = 0.01) -> WorstGroup:
    """Groups count by their loss; see :class:`WorstGroup`.

    Args:
        rows: the training rows.
        column: whose values are the groups; by default the one that the data are grouped by.
        rate: η, more than 0.
    """
    need_positive("weighting_options.rate", rate)
    return WorstGroup(*grouped(rows, column or rows.group), rate)


def oracle(rows: Rows, *, column: str = "clean", values: Sequence[Any] = (True,)) -> FixedWeights:
    """What is known to be right counts, all else does not: the ceiling where data say which.

    Args:
        rows: the training rows.
        column: that says it.
        values: of the column where a row is right.

    Raises:
        UserError: there is no such column, or no row has such a value.
    """
    known = list(values) if isinstance(values, list | tuple) else [values]
    found = list(rows.column(column))
    right = torch.tensor([value in known for value in found], dtype=torch.float64)
    if not right.any():
        raise UserError(
            f"weighting=oracle: no training row has {column} of {known}; its values are such as "
            f"{sorted({str(value) for value in found})[:5]}: see weighting_options"
        )
    weights = right / right.mean()
    of_value = dict(zip(map(str, found), weights.tolist(), strict=True))
    # The values of another column are no groups of the task.
    return FixedWeights(of_value if column == rows.group else {}, weights)
