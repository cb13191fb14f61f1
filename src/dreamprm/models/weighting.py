"""Weighting modules: what turns the upper parameters α into a weight for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class DomainTable(nn.Module):
    """One weight per domain: w_k = softplus(α_k) / mean_j softplus(α_j).

    All weights start at 1 and always average 1 (DreamPRM, arXiv 2505.20241).

    Args:
        domains: names; a batch's ``"domain"`` entry holds indices into them.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = tuple(domains)
        self.alpha = nn.Parameter(torch.zeros(len(self.domains)))

    def weights(self) -> Tensor:
        """The weight of every domain, [K]."""
        # Full precision under autocast as well: a table costs nothing.
        positive = softplus(self.alpha.float() if self.alpha.dtype.itemsize < 4 else self.alpha)
        return positive / positive.mean()

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b], by ``batch["domain"]`` [b]."""
        return self.weights()[batch["domain"]]

    @torch.no_grad()
    def named_weights(self) -> dict[str, float]:
        """The weight of every domain by its name."""
        return dict(zip(self.domains, self.weights().tolist(), strict=True))
