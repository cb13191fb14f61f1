"""A weight of every row: by a table, or by a network over what is known of the row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

from dreamprm.errors import UserError, need_whole, unknown_name
from dreamprm.weighting.row_parameters import RowParameters
from dreamprm.weighting.rows import Rows

# Each with the raw value at which a weight is 1.
ACTIVATIONS = {
    "softplus": (softplus, math.log(math.e - 1)),
    "sigmoid": (lambda raw: 2 * raw.sigmoid(), 0.0),
    "clip": (lambda raw: raw.clamp(-1, 3), 1.0),
    "leaky_relu": (leaky_relu, 1.0),
}


class InstanceTable(RowParameters):
    """A weight for each of n training rows: w_i = f(α_i), started at 1.

    Args:
        count: n.
        activation: f; a name of ``ACTIVATIONS``.
        normalize: divide the weights of a batch by their mean.
    """

    def __init__(self, count: int, activation: str = "softplus", normalize: bool = True) -> None:
        super().__init__()
        self.activation, start = ACTIVATIONS[activation]
        self.normalize = normalize
        self.alpha = nn.Parameter(torch.full((count,), start))

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b], by ``batch["index"]`` [b]."""
        weights = self.activation(self.alpha[self.places(batch)])
        return weights / weights.mean() if self.normalize else weights

    @torch.no_grad()
    def row_weights(self) -> Tensor:
        """The weight of every row, [n]; where they are normalised, over their mean."""
        weights = self.activation(self.alpha)
        return weights / weights.mean() if self.normalize else weights


class InstanceNetwork(nn.Module):
    """A network from a sample's loss and features to its weight (Meta-Weight-Net).

    It sees the losses detached, their logarithm standardised over the batch, and its weights are
    divided by their mean over the batch.

    Args:
        features: entries of a batch that it also sees, each [b] or [b, …].
        inputs: numbers a sample in all of these.
        hidden: width.
    """

    def __init__(self, features: Sequence[str], inputs: int, hidden: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.network = nn.Sequential(
            nn.Linear(1 + inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()
        )

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b]."""
        seen = losses.detach().float().clamp(min=1e-6).log()
        if len(seen) > 1:
            seen = (seen - seen.mean()) / seen.std().clamp(min=1e-6)
        known = [batch[name].detach().float().flatten(1) if batch[name].dim() > 1
                 else batch[name].detach().float()[:, None] for name in self.features]  # fmt: skip
        weights = self.network(torch.cat([seen[:, None], *known], dim=1)).squeeze(-1)
        return weights / weights.mean()


def instance_table(
    rows: Rows, *, activation: str = "softplus", normalize: bool = True
) -> InstanceTable:
    """A table of all training rows.

    Args:
        rows: the training rows.
        activation: from the raw value to the weight: softplus, sigmoid (up to 2), clip (to −1 … 3)
            or leaky_relu (the last two may be negative: DreamPRM-1.5, arXiv 2509.05542).
        normalize: divide the weights of a batch by their mean.
    """
    if activation not in ACTIVATIONS:
        raise UserError(unknown_name("weighting_options.activation", activation, ACTIVATIONS))
    if normalize and activation in ("clip", "leaky_relu"):
        raise UserError(
            f"weighting_options.activation={activation} gives weights below 0, which their mean "
            "cannot divide: set weighting_options.normalize=false"
        )
    return InstanceTable(rows.count, activation, normalize)


def instance_network(
    rows: Rows, *, hidden: int = 100, features: Sequence[str] = ()
) -> InstanceNetwork:
    """A network over the loss of a sample, and over entries of its batch.

    Args:
        rows: the training rows.
        hidden: its width.
        features: names of entries of a batch that it sees beside the loss.
    """
    need_whole("weighting_options.hidden", hidden, 1)
    features = [features] if isinstance(features, str) else list(features)
    batch = rows.example() if features else {}
    for name in features:
        if name not in batch:
            raise UserError(unknown_name("entry of a batch", name, [str(key) for key in batch]))
        if not isinstance(batch[name], Tensor):
            raise UserError(f"weighting_options.features: {name} is no tensor in a batch")
    inputs = sum(batch[name].flatten(1).shape[1] if batch[name].dim() > 1 else 1
                 for name in features)  # fmt: skip
    return InstanceNetwork(features, inputs, hidden)
