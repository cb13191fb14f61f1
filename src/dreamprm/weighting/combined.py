"""A weight for every group and one for every row, learned together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.weighting.groups import DomainTable, domain_table
from dreamprm.weighting.instances import InstanceTable, instance_table
from dreamprm.weighting.rows import Rows


class DomainAndRows(nn.Module):
    """w_i = w_domain(i) · w_row(i): what a domain is worth, and how a row differs from it.

    Both tables are one upper problem's: one hypergradient gives both, at the same α. With a problem
    each, there would be two, the second one at the first one's new α.

    Args:
        domains, rows: the tables.
    """

    def __init__(self, domains: DomainTable, rows: InstanceTable) -> None:
        super().__init__()
        self.domains, self.rows = domains, rows

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b], by ``batch["index"]`` [b]."""
        return self.domains(batch, losses) * self.rows(batch, losses)

    def named_weights(self) -> dict[str, float]:
        """The weight of every domain by its name."""
        return self.domains.named_weights()

    @torch.no_grad()
    def row_weights(self) -> Tensor:
        """The weight of every row, [n], its domain's included."""
        rows = self.rows.row_weights()
        return rows * self.domains({"index": torch.arange(len(rows), device=rows.device)}, rows)


def domain_and_rows(
    rows: Rows, *, column: str | None = None, bins: int = 0, activation: str = "softplus"
) -> DomainAndRows:
    """Both tables; see :class:`DomainAndRows`.

    Args:
        rows: the training rows.
        column, bins: of the domains, as of ``domain_table``.
        activation: of the rows, as of ``instance_table``; softplus or sigmoid.
    """
    domains = domain_table(rows, column=column, bins=bins)
    return DomainAndRows(domains, instance_table(rows, activation=activation))
