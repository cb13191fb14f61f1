"""Upper variables with a row for each training row, of which a batch touches a few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.errors import UserError
from dreamprm.hypergradients.interface import Loss


class RowParameters(nn.Module):
    """A module all of whose parameters, [n, …], have a row for each of the n training rows.

    A hypergradient takes the rows of its batches alone for α, dense as any method and product
    wants them, and gives the optimizer a sparse gradient: neither grows with n.

    Args:
        by_rows: False where what decays, clips or unrolls asks for all rows at every step.
    """

    def __init__(self, by_rows: bool = True) -> None:
        super().__init__()
        self.by_rows = by_rows
        self._held: Tensor | None = None

    def places(self, batch: dict[str, Any]) -> Tensor:
        """Where the parameters have the rows of a batch, [b], by its ``"index"``.

        Raises:
            UserError: in a hypergradient, the batch has rows that the lower problem's has not.
        """
        index: Tensor = batch["index"]
        if self._held is None:
            return index
        places = torch.searchsorted(self._held, index).clamp(max=len(self._held) - 1)
        if not torch.equal(self._held[places], index):
            raise UserError(
                f"{type(self).__name__} is asked for the weights of rows that are not in the lower "
                "problem's batches: an upper loss cannot use them"
            )
        return places

    @contextmanager
    def holding(self, rows: Tensor) -> Iterator[None]:
        """While the parameters are those of ``rows`` alone, [m], ascending."""
        before, self._held = self._held, rows
        try:
            yield
        finally:
            self._held = before


def rows_of(module: nn.Module, batches: Sequence[Any]) -> Tensor | None:
    """The training rows in a hypergradient's batches, ascending; None where α is not by rows."""
    if not isinstance(module, RowParameters) or not module.by_rows:
        return None
    return torch.unique(torch.cat([batch["index"] for batch in batches]))


def holding(module: nn.Module, rows: Tensor | None, loss: Loss) -> Loss:
    """The same loss, where α is given for ``rows`` alone."""
    if rows is None:
        return loss
    assert isinstance(module, RowParameters)

    def of_rows(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        with module.holding(rows):
            return loss(lower, upper)

    return of_rows


def spread(parts: Sequence[Tensor], rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Sparse tensors shaped as ``like`` whose rows ``rows`` are those of ``parts``."""
    return [
        torch.sparse_coo_tensor(
            rows[None], part, whole.shape, is_coalesced=True, check_invariants=False
        )
        for part, whole in zip(parts, like, strict=True)
    ]
