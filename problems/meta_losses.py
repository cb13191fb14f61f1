"""Meta objectives: what a reward model is held to on solutions of which only the outcome is known.

Each takes ``scores`` s [b], the mean step logit of every solution; ``outcome`` r [b], 1 right and
0 wrong; and ``question`` [b], equal for solutions of one question.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus


def aggregation_mse(scores: Tensor, outcome: Tensor, question: Tensor) -> Tensor:
    """mean (σ(s) − r)², DreamPRM's own (arXiv 2505.20241).

    It sees the level of the scores: the mean of step logits of a solution that fails at its last
    step is still high, so domains with low labels are rewarded whatever their quality.
    """
    return (scores.sigmoid() - outcome).square().mean()


def pairwise(scores: Tensor, outcome: Tensor, question: Tensor) -> Tensor:
    """mean over pairs of softplus(−(s_right − s_wrong)); blind to the level of the scores.

    Pairs are taken within a question where the batch has such pairs, else within the batch.

    Raises:
        ValueError: the batch has only one outcome.
    """
    right, wrong = outcome.bool()[:, None], ~outcome.bool()[None, :]
    pairs = right & wrong
    if not pairs.any():
        raise ValueError("pairwise needs right and wrong solutions in every meta batch")
    within = pairs & (question[:, None] == question[None, :])
    pairs = torch.where(within.any(), within, pairs)
    return softplus(scores[None, :] - scores[:, None])[pairs].mean()


def calibrated(scores: Tensor, outcome: Tensor, question: Tensor, ridge: float = 0.1) -> Tensor:
    """Cross-entropy of σ(a·s + c), with slope a and offset c fitted to this batch first.

    The fit is a ridge logistic regression; the ridge pulls the slope towards 1 (no recalibration)
    and leaves the offset free, so the level of the scores is not seen. By the envelope theorem the
    fit needs no gradient of its own.

    Raises:
        ValueError: the batch has only one outcome.
    """
    if outcome.min() == outcome.max():
        raise ValueError("calibrated needs right and wrong solutions in every meta batch")
    slope, offset = _logistic_fit(scores.detach(), outcome, ridge)
    return binary_cross_entropy_with_logits(
        slope.to(scores.dtype) * scores + offset.to(scores.dtype), outcome.to(scores.dtype)
    )


@torch.no_grad()
def _logistic_fit(scores: Tensor, outcome: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Slope and offset that minimise cross-entropy + ridge/2 · (slope − 1)², by damped Newton."""
    s, r = scores.double(), outcome.double()
    shift = s.mean()
    x = torch.stack([s - shift, torch.ones_like(s)], dim=1)
    start = torch.stack([torch.ones_like(shift), torch.logit(r.mean())])
    penalty = torch.tensor([ridge, 0.0], dtype=s.dtype, device=s.device)

    def objective(theta: Tensor) -> Tensor:
        fit = binary_cross_entropy_with_logits(x @ theta, r)
        return fit + 0.5 * (penalty * (theta - start).square()).sum()

    theta = start.clone()
    for _ in range(50):
        p = (x @ theta).sigmoid()
        gradient = x.T @ (p - r) / len(r) + penalty * (theta - start)
        if gradient.norm() < 1e-10:
            break
        hessian = (x.T * (p * (1 - p))) @ x / len(r) + torch.diag(penalty)
        step = torch.linalg.solve(hessian, gradient)
        size, before = 1.0, objective(theta)
        while size > 1e-6 and objective(theta - size * step) > before:
            size /= 2
        theta = theta - size * step
    return theta[0], theta[1] - theta[0] * shift


META_LOSSES = {
    "aggregation_mse": aggregation_mse,
    "pairwise": pairwise,
    "calibrated": calibrated,
}
NEEDS_BOTH_OUTCOMES = ("pairwise", "calibrated")
