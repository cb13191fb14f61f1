"""Batches filled by tokens, of items of similar length: less padding, and an even load.

As in ``BatchStream``, the order is a function of the seed and the position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dreamprm.data.batches import BatchStream, Item

WINDOW = 32  # batches' worth of items that are sorted by length together


class TokenBatchStream(BatchStream):
    """An endless iterable of collated batches; every item once an epoch, in batches of its length.

    In every epoch the items are shuffled, sorted by length within windows of about 32 batches, cut
    into batches, and these shuffled.

    Args:
        items, collate, seed: as of ``BatchStream``.
        lengths: of every item, in tokens.
        max_tokens: of a batch with its padding: items times the longest of them.
        batch_size: the most items of a batch.

    Raises:
        ValueError: an item alone is longer than a batch may be.
    """

    def __init__(
        self,
        items: Sequence[Item],
        lengths: Sequence[int],
        max_tokens: int,
        batch_size: int,
        collate: Callable[[list[Item]], Any],
        seed: int,
    ) -> None:
        super().__init__(items, batch_size, collate, seed)
        if max(lengths) > max_tokens:
            raise ValueError(f"an item has {max(lengths)} tokens, expected at most {max_tokens}")
        self.lengths, self.max_tokens = np.asarray(lengths), max_tokens
        self._starts = [0]  # the position at which each epoch begins
        self._plan = lru_cache(maxsize=2)(self._batches)

    def indices(self, position: int) -> list[int]:
        """The indices of the items of the batch at ``position``, counted from 0."""
        while self._starts[-1] <= position:
            epoch = len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._plan(epoch)))
        epoch = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._plan(epoch)[position - self._starts[epoch]]

    def recent(self, batches: int, size: int) -> list[Any]:
        """``size`` items, or all, drawn from the last ``batches`` batches, in batches as full.

        A batch is of one length, and its first items are its longest: these would be others.
        """
        items = np.array(self._recent(batches))
        rng = np.random.default_rng((self.seed, self.position, size))
        drawn = rng.permutation(items)[:size]
        return [self.collated(batch) for batch in self._filled(drawn)]

    def padding(self) -> float:
        """The share of padding among the tokens of the first epoch."""
        padded = sum(len(batch) * self.lengths[batch].max() for batch in self._plan(0))
        return 1 - float(self.lengths.sum() / padded)

    def _batches(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.items))
        size = WINDOW * max(1, min(self.batch_size, self.max_tokens // int(self.lengths.mean())))
        windows = [order[start : start + size] for start in range(0, len(order), size)]
        batches = [batch for window in windows for batch in self._filled(window)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _filled(self, items: np.ndarray) -> list[list[int]]:
        """Items cut into batches, longest first."""
        batches: list[list[int]] = [[]]
        for index in items[np.argsort(-self.lengths[items], kind="stable")].tolist():
            batch = batches[-1]
            full = (len(batch) + 1) * self.lengths[(batch or [index])[0]] > self.max_tokens
            if full or len(batch) == self.batch_size:
                batches.append([])
            batches[-1].append(index)
        return batches
