"""DreamPRM's two problems: fine-tuning of the reward model, and domain weighting above it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dreamprm.errors import UserError, unknown_name
from dreamprm.problems.meta_losses import meta_loss_named
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem
from dreamprm.problems.step_losses import STEP_LOSSES
from dreamprm.scoring.aggregation import mean_logit


class PRMFineTuning(ReweightedProblem):
    """The lower problem: step scores against Monte Carlo labels, a sample being a solution.

    The losses are scaled such that their weighted mean over the batch is
    Σ_k (b_k / b) · w_k · L_k, with b_k of the b solutions from domain k and L_k the mean over
    domain k's labelled steps. In batches stratified by domain that is the paper's Σ_k w_k · L_k
    but for the constant 1/K.

    Args:
        step_loss: ``"squared_error"`` (DreamPRM) or ``"cross_entropy"`` (DreamPRM-1.5).
    """

    def __init__(self, *args: Any, step_loss: str = "squared_error", **parts: Any) -> None:
        super().__init__("prm", *args, **parts)
        if step_loss not in STEP_LOSSES:
            raise UserError(unknown_name("step loss", step_loss, STEP_LOSSES))
        self.step_loss = STEP_LOSSES[step_loss]

    def size_of(self, batch: dict[str, Any]) -> int:
        """Its solutions."""
        return len(batch["outcome"])

    def sample_losses(self, batch: dict[str, Any]) -> Tensor:
        """The loss of every solution, [b]."""
        return self.losses_of(self(batch), batch)

    def training_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """As of any; a weighting also finds ``"step_scores"`` in the batch, [b, S], detached."""
        batch = self.corrected(batch)
        logits = self(batch)
        seen = {**batch, "step_scores": logits.detach().sigmoid()}
        return self.weighted(seen, self.losses_of(logits, batch))

    def losses_of(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """The loss of every solution, [b], by its step logits, [b, S]."""
        mask = batch["label_mask"]
        losses = self.step_loss(logits, batch["step_labels"]) * mask
        same_domain = batch["domain"][:, None] == batch["domain"]
        steps_of_domain = (same_domain * mask.sum(-1)).sum(-1)
        return losses.sum(-1) * same_domain.sum(-1) / steps_of_domain.clamp(min=1)


class DomainWeighting(WeightingProblem):
    """The upper problem: how well the reward model tells right meta solutions from wrong ones.

    Args:
        meta_loss: a name of ``dreamprm.problems.meta_losses.META_LOSSES``.
        options: of that loss.
    """

    def __init__(
        self,
        *args: Any,
        meta_loss: str = "pairwise",
        options: dict[str, Any] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(*args, **parts)
        self.options = options or {}
        found = meta_loss_named(meta_loss, self.options)
        self.meta_loss, self.aggregate, self.of_steps = found.value, found.aggregate, found.of_steps

    def size_of(self, batch: dict[str, Any]) -> int:
        """Its solutions."""
        return len(batch["outcome"])

    def training_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The meta loss, and of solutions for the logs the share that is on the right side."""
        logits, steps = self.prm(batch), batch["step_mask"]
        if self.of_steps:
            labelled = batch["label_mask"]
            scores, right = logits[labelled], (batch["step_labels"][labelled] > 0.5).float()
            apart = torch.arange(len(scores), device=scores.device)
            return {"loss": self.meta_loss(scores, right, apart, **self.options)}
        scores = self.aggregate(logits, steps)
        loss = self.meta_loss(scores, batch["outcome"], batch["question"], **self.options)
        with torch.no_grad():
            right = (mean_logit(logits, steps) > 0) == batch["outcome"].bool()
        return {"loss": loss, "accuracy": right.float().mean()}
