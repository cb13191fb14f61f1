"""Endless batches whose order is a function of the seed and the position alone.

Nothing but the position has to be saved for a resumed run to continue with the batches that it
would have seen without the interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")


class BatchStream:
    """An endless iterable of collated batches, drawn without replacement within each epoch.

    Args:
        items: what to draw from.
        batch_size: items per batch.
        collate: turns a list of items into a batch.
        seed: the order is a function of it.
        groups: one group per item, for batches stratified by group: every group gives the same
            number of items to a batch, up to one; where that does not come out even, the groups
            take turns with the rest. Without it, items are drawn from the whole.
    """

    def __init__(
        self,
        items: Sequence[Item],
        batch_size: int,
        collate: Callable[[list[Item]], Any],
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> None:
        if not items:
            raise ValueError("there is nothing to draw batches from")
        self.items = items
        self.batch_size = batch_size
        self.collate = collate
        self.seed = seed
        self.position = 0
        names = groups if groups is not None else [""] * len(items)
        members: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            members.setdefault(name, []).append(index)
        self._members = [np.array(members[name]) for name in sorted(members)]
        self._order: dict[tuple[int, int], np.ndarray] = {}

    def indices(self, position: int) -> list[int]:
        """The indices of the items of the batch at ``position``, counted from 0."""
        first = position * self.batch_size
        slots = np.arange(first, first + self.batch_size)
        count = len(self._members)
        return [self._draw(int(slot % count), int(slot // count)) for slot in slots]

    def _draw(self, group: int, nth: int) -> int:
        """The index of the n-th item ever drawn from a group."""
        members = self._members[group]
        epoch, offset = divmod(nth, len(members))
        key = (group, epoch)
        if key not in self._order:
            # One permutation a group is alive at a time.
            self._order = {k: v for k, v in self._order.items() if k[0] != group}
            rng = np.random.default_rng((self.seed, group, epoch))
            self._order[key] = rng.permutation(members)
        return int(self._order[key][offset])

    def __iter__(self) -> Iterator[Any]:
        while True:
            batch = [self.items[index] for index in self.indices(self.position)]
            self.position += 1
            yield self.collate(batch)

    def recent(self, batches: int, size: int) -> Any:
        """One batch of the first ``size`` items, or all, of the last ``batches`` batches.

        Of batches that are stratified, it is stratified in the same way.
        """
        first = max(0, self.position - batches)
        items = [i for position in range(first, self.position) for i in self.indices(position)]
        return self.collate([self.items[index] for index in items[:size]])

    def state_dict(self) -> dict[str, int]:
        """The place in the order."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a place in the order."""
        self.position = state["position"]


def to_device(batch: Any, device: torch.device | str | None) -> Any:
    """Moves every tensor of a batch to a device, however deep in dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
