"""One weight per group of rows: the table of DreamPRM, over any column of the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dreamprm.errors import need_whole
from dreamprm.weighting.rows import Rows, grouped

log = logging.getLogger("dreamprm")


class DomainTable(nn.Module):
    """One weight per domain: w_k = softplus(α_k) / mean_j softplus(α_j).

    All weights start at 1 and always average 1 (DreamPRM, arXiv 2505.20241).

    Args:
        domains: names of the K domains.
        places: [n], of every training row's domain among them; without it, a batch's ``"domain"``
            entry says them.
    """

    def __init__(self, domains: Sequence[str], places: Tensor | None = None) -> None:
        super().__init__()
        self.domains = tuple(domains)
        self.alpha = nn.Parameter(torch.zeros(len(self.domains)))
        # No buffer: every evaluation of a hypergradient would copy it.
        self.places = places

    def weights(self) -> Tensor:
        """The weight of every domain, [K]."""
        # Full precision under autocast as well: a table costs nothing.
        positive = softplus(self.alpha.float() if self.alpha.dtype.itemsize < 4 else self.alpha)
        return positive / positive.mean()

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b], by ``batch["index"]`` or ``batch["domain"]``, [b]."""
        if self.places is None:
            return self.weights()[batch["domain"]]
        if self.places.device != batch["index"].device:
            self.places = self.places.to(batch["index"].device)
        return self.weights()[self.places[batch["index"]]]

    @torch.no_grad()
    def named_weights(self) -> dict[str, float]:
        """The weight of every domain by its name."""
        return dict(zip(self.domains, self.weights().tolist(), strict=True))


def domain_table(rows: Rows, *, column: str | None = None, bins: int = 0) -> DomainTable:
    """A table over a column of the data.

    Args:
        rows: the training rows.
        column: whose values are the domains; by default the one that the task's data are grouped
            by.
        bins: of a column of numbers: how many domains its values are cut into, at their quantiles;
            0 for one domain a value.

    Raises:
        UserError: there is no such column, or a row has no value in it.
    """
    need_whole("weighting_options.bins", bins, 0)
    names, places = grouped(rows, column or rows.group, bins)
    if len(names) == 1:
        log.warning("there is only one %s, %r: its weight stays 1", column or rows.group, names[0])
    return DomainTable(names, places)
