"""Weights of the batch that is about to be trained on, found anew for every one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.weighting.rows import Rows


class NextStep(nn.Module):
    """w_i = max(a_i, 0) over its mean in the batch (Ren et al. 2018, arXiv 1803.09050).

    The alignment a_i = ⟨∇ℓ_i(φ), ∇_φ M(φ)⟩ is what M falls by, to first order, for a step of
    gradient descent on sample i. There are no parameters: the problems take the alignments (see
    ``dreamprm.problems.next_step``), and nothing of one batch is left for the next.
    """

    def forward(self, batch: Any, losses: Tensor) -> Tensor:
        """1 for every sample, [b], where there are no alignments yet."""
        return torch.ones_like(losses)

    def of_alignments(self, alignments: Tensor) -> Tensor:
        """The weight of every sample, [b]; all are 0 where no step on any would lower M."""
        weights = alignments.clamp(min=0)
        mean = weights.mean()
        return weights / mean if mean > 0 else weights


def learning_to_reweight(rows: Rows) -> NextStep:
    """Samples count by what a step on them does for the meta set; see :class:`NextStep`.

    Args:
        rows: the training rows.
    """
    return NextStep()
