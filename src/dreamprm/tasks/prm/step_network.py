"""The weight of a solution by what the reward model thinks of its steps: DreamPRM-1.5's network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.errors import need_whole
from dreamprm.scoring.aggregation import mean_logit
from dreamprm.weighting import Rows, Weighting, register


class StepNetwork(nn.Module):
    """w = σ(mean over steps of a network of P("+") and P("−")), in (0, 1) (arXiv 2509.05542).

    The published code lets the lower level's gradient go through the probabilities, too: the
    reward model then learns scores that give its hard solutions little weight. Here they are
    detached.

    Args:
        hidden: width.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1))

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every solution, [b], by ``batch["step_scores"]``, [b, S]."""
        parameter = next(self.network.parameters())
        right = batch["step_scores"].detach().to(parameter.dtype)
        # Full precision under autocast as well: the network costs nothing.
        with torch.autocast(right.device.type, enabled=False):
            of_steps = self.network(torch.stack([right, 1 - right], dim=-1)).squeeze(-1)
        return mean_logit(of_steps, batch["step_mask"]).sigmoid()


def step_network(rows: Rows, *, hidden: int = 10) -> StepNetwork:
    """A network over the scores of a solution's steps; see :class:`StepNetwork`.

    Args:
        rows: the training rows.
        hidden: its width.
    """
    need_whole("weighting_options.hidden", hidden, 1)
    return StepNetwork(hidden)


register(Weighting("step_network", step_network, source="Cao et al. 2025, arXiv 2509.05542"))
