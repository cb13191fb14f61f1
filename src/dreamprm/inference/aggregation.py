"""From step scores to one score per solution: the same function in the meta loss and in use."""

from __future__ import annotations

from torch import Tensor


def mean_logit(logits: Tensor, mask: Tensor) -> Tensor:
    """The mean of the step logits of each solution; its sigmoid is DreamPRM's aggregated score.

    Args:
        logits: of the step scores, [b, S].
        mask: which of them are steps, [b, S]; every row has at least one.

    Returns:
        [b].
    """
    return (logits * mask).sum(-1) / mask.sum(-1)
