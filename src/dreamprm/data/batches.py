"""Endless batches whose order is a function of the seed and the position alone.

Nothing but the position has to be saved for a resumed run to continue with the batches that it
would have seen without the interruption.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dreamprm.errors import UserError

Item = TypeVar("Item")


BLOCK = 1024  # slots in which every group has its share, to within one
ATTEMPTS = 1000  # draws for one slot, before a group counts as one that fits nowhere


class BatchStream:
    """An endless iterable of collated batches, drawn without replacement within each epoch.

    A batch that is a dict gets an entry ``"index"``, [b]: the places of its items.

    Args:
        items: what to draw from; an item is taken out of it when it is drawn.
        batch_size: items per batch.
        collate: turns a list of items into a batch.
        seed: the order is a function of it.
        groups: one group per item, to draw from every group equally often: every group gives the
            same number of items to a batch, up to one; where that does not come out even, the
            groups take turns with the rest. Without it, items are drawn from the whole.
        temperature: draw from a group of n items with a share proportional to n^(1/temperature)
            instead (Arivazhagan et al. 2019, arXiv 1907.05019).
        fits: whether an item may be drawn; without it, all may. One that does not fit is left out
            when its turn comes, and another of its group drawn at random in its place.
        gather: gives the batch of the items at some places, where that is faster than ``collate``
            of one after the other.

    Raises:
        UserError: when a batch is drawn: none of very many items of a group fits.
    """

    def __init__(
        self,
        items: Sequence[Item],
        batch_size: int,
        collate: Callable[[list[Item]], Any],
        seed: int,
        groups: Sequence[Any] | np.ndarray | None = None,
        temperature: float | None = None,
        fits: Callable[[Item], bool] | None = None,
        gather: Callable[[Sequence[int]], Any] | None = None,
    ) -> None:
        if not len(items):
            raise ValueError("there is nothing to draw batches from")
        self.items = items
        self.batch_size = batch_size
        self.collate = collate
        self.gather = gather
        self.seed = seed
        self.position = 0
        self._members = _members(len(items), groups)
        self._order: dict[tuple[int, int], np.ndarray] = {}
        self._shares: np.ndarray | None = None
        if temperature is not None:
            # Over the largest, so that no power overflows.
            sizes = np.array([len(members) for members in self._members])
            powers = (sizes / sizes.max()) ** (1 / temperature)
            self._shares = powers / powers.sum()
        # Items drawn from each group before each block of slots.
        self._before = [np.zeros(len(self._members), np.int64)]
        self._block = lru_cache(maxsize=4)(self._groups_of_block)
        self.fits = fits
        self._fitting = np.zeros(len(items) if fits else 0, np.int8)  # 1 fits, -1 does not

    @property
    def left_out(self) -> int:
        """How many items turned out not to fit, of those that were drawn."""
        return int((self._fitting < 0).sum())

    def indices(self, position: int) -> list[int]:
        """The indices of the items of the batch at ``position``, counted from 0."""
        first = position * self.batch_size
        slots = range(first, first + self.batch_size)
        if self.fits is None and len(self._members) == 1:
            return self._of_one_group(slots)
        return [self._draw(*self._turn(slot)) for slot in slots]

    def _of_one_group(self, slots: range) -> list[int]:
        """What each slot would draw, an epoch at a time: a batch may be all of many items."""
        found: list[int] = []
        while slots:
            epoch, offset = divmod(slots[0], len(self.items))
            left = len(self.items) - offset
            found += self._epoch(0, epoch)[offset : offset + len(slots)].tolist()
            slots = slots[left:]
        return found

    def _turn(self, slot: int) -> tuple[int, int]:
        """The group that a slot is drawn from, and how often it was drawn from before."""
        if self._shares is None:
            nth, group = divmod(slot, len(self._members))
            return group, nth
        block, offset = divmod(slot, BLOCK)
        while len(self._before) <= block:
            drawn = np.bincount(self._block(len(self._before) - 1), minlength=len(self._members))
            self._before.append(self._before[-1] + drawn)
        groups = self._block(block)
        group = int(groups[offset])
        return group, int(self._before[block][group] + (groups[:offset] == group).sum())

    def _groups_of_block(self, block: int) -> np.ndarray:
        """[BLOCK] groups in random order: systematic sampling, each with its share on average."""
        assert self._shares is not None
        # No group has the number that stands for the groups' own draw.
        rng = np.random.default_rng((self.seed, len(self._members), block))
        points = (np.arange(BLOCK) + rng.random()) / BLOCK
        groups = np.searchsorted(np.cumsum(self._shares)[:-1], points, side="right")
        return rng.permutation(groups)

    def _draw(self, group: int, nth: int) -> int:
        """The index of the n-th item ever drawn from a group."""
        members = self._members[group]
        epoch, offset = divmod(nth, len(members))
        index = int(self._epoch(group, epoch)[offset])
        for attempt in range(1, ATTEMPTS + 1):
            if self._is_fitting(index):
                return index
            rng = np.random.default_rng((self.seed, group, nth, attempt))
            index = int(members[rng.integers(len(members))])
        raise UserError(
            f"{ATTEMPTS:,} items were drawn in the place of one that is too long, and all of them "
            f"were; the last is {getattr(self.items[index], 'id', index)!r}: raise data.max_tokens"
        )

    def _epoch(self, group: int, epoch: int) -> np.ndarray:
        """The items of a group in the order of an epoch."""
        key = (group, epoch)
        if key not in self._order:
            # One permutation a group is alive at a time.
            self._order = {k: v for k, v in self._order.items() if k[0] != group}
            rng = np.random.default_rng((self.seed, group, epoch))
            self._order[key] = rng.permutation(self._members[group])
        return self._order[key]

    def _is_fitting(self, index: int) -> bool:
        if self.fits is None:
            return True
        if not self._fitting[index]:
            self._fitting[index] = 1 if self.fits(self.items[index]) else -1
        return bool(self._fitting[index] > 0)

    def __iter__(self) -> Iterator[Any]:
        while True:
            indices = self.indices(self.position)
            self.position += 1
            yield self.collated(indices)

    def recent(self, batches: int, size: int) -> list[Any]:
        """The first ``size`` items, or all, of the last ``batches`` batches, in batches no larger.

        They have groups in the same shares as those.
        """
        items = self._recent(batches)[:size]
        parts = range(0, len(items), self.batch_size)
        return [self.collated(items[start : start + self.batch_size]) for start in parts]

    def recent_names(self, batches: int) -> list[list[str]]:
        """What the items of each of the last ``batches`` batches are called.

        Returns:
            ``id (domain)`` of what has an id, ``row 17 (domain)`` by the index of what has none; a
            list of items, such as a question's solutions, is named one by one.
        """
        first = max(0, self.position - batches)
        return [
            [name for i in self.indices(position) for name in _names(self.items[i], i)]
            for position in range(first, self.position)
        ]

    def _recent(self, batches: int) -> list[int]:
        first = max(0, self.position - batches)
        return [i for position in range(first, self.position) for i in self.indices(position)]

    def collated(self, indices: Sequence[int]) -> Any:
        """The batch of the items at these places."""
        if self.gather is not None:
            # All of them in their order need no copy.
            indices = sorted(indices) if len(indices) == len(self.items) else indices
            batch = self.gather(indices)
        else:
            batch = self.collate([self.items[index] for index in indices])
        if isinstance(batch, dict):
            batch.setdefault("index", torch.tensor(indices))
        return batch

    def state_dict(self) -> dict[str, int]:
        """The place in the order."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from a place in the order."""
        self.position = state["position"]


def _members(count: int, groups: Sequence[Any] | np.ndarray | None) -> list[np.ndarray]:
    """The indices of the items of each group, the groups sorted."""
    if groups is None:
        return [np.arange(count)]
    names = sorted(set(groups.tolist() if isinstance(groups, np.ndarray) else groups))
    code = {name: place for place, name in enumerate(names)}
    codes = np.fromiter((code[name] for name in groups), np.int64, count)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.searchsorted(codes[order], np.arange(1, len(names))))


def _names(item: Any, index: int) -> list[str]:
    if isinstance(item, list) and all(hasattr(each, "id") for each in item):
        return [name for each in item for name in _names(each, index)]
    name, domain = _entry(item, "id"), _entry(item, "domain")
    name = f"row {index}" if name is None else name
    return [name if domain is None else f"{name} ({domain})"]


def _entry(item: Any, key: str) -> str | None:
    """What an item says under a key, as one short line; None where it says nothing."""
    value = item.get(key) if isinstance(item, Mapping) else getattr(item, key, None)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return None if value is None else textwrap.shorten(str(value), 60, placeholder="…")


def to_device(batch: Any, device: torch.device | str | None) -> Any:
    """Moves every tensor of a batch to a device, however deep in dicts, lists and tuples."""
    return map_tensors(batch, lambda tensor: tensor.to(device))


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with every tensor changed, however deep in dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, change) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_tensors(value, change) for value in batch)
    return batch
