"""The two problems of learned weight decay: a regression, and how small each group stays.

lower   L(φ, α) = mean squared error + Σ_g e^(α_g) · ‖φ_g‖²
upper   M(φ*(α)), the mean squared error on validation rows
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.problems.base import Problem


class GroupDecay(nn.Module):
    """λ_g = e^(α_g) for each of G groups of parameters.

    Args:
        groups: the first part of the names of each one's parameters.
        start: of every λ.
    """

    def __init__(self, groups: Sequence[str], start: float) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.alpha = nn.Parameter(torch.full((len(self.groups),), math.log(start)))

    def forward(self, module: nn.Module) -> Tensor:
        """Σ_g λ_g ‖φ_g‖² of a module's parameters."""
        squares: dict[str, Tensor | float] = dict.fromkeys(self.groups, 0.0)
        for name, parameter in module.named_parameters():
            group = name.partition(".")[0]
            squares[group] = squares[group] + parameter.square().sum()
        norms = torch.stack([torch.as_tensor(squares[group]) for group in self.groups])
        return self.alpha.exp() @ norms

    @torch.no_grad()
    def named(self) -> dict[str, float]:
        """λ of every group by its name."""
        return dict(zip(self.groups, self.alpha.exp().tolist(), strict=True))


class DecayedRegression(Problem):
    """The lower problem; the upper one is named ``"decay"``.

    Args:
        fixed: the decay where there is no upper problem.
    """

    def __init__(self, *args: Any, fixed: GroupDecay, **parts: Any) -> None:
        super().__init__("regression", *args, **parts)
        self.fixed = fixed.requires_grad_(False)

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The squared error with the decay's term, and for the logs without it."""
        error = squared_error(self.module, batch)
        decay = self.decay if self.parents else self.fixed.to(self.device)
        return {"loss": error + decay(self.module), "error": error.detach()}


class Validation(Problem):
    """The upper problem: the regression's squared error on validation rows."""

    def __init__(self, *args: Any, **parts: Any) -> None:
        super().__init__("decay", *args, **parts)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The squared error."""
        return squared_error(self.regression.module, batch)


def squared_error(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Its mean over ``batch["x"]`` [b, d] and ``batch["y"]`` [b]."""
    return (module(batch["x"]) - batch["y"]).square().mean()
