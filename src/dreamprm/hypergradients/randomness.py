"""The random numbers that a loss draws, e.g. its dropout masks, held fast over its evaluations.

With different masks, differences between evaluations of one loss would be mostly noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class RandomState:
    """Where torch's generators stand: the CPU's, and those of some CUDA devices."""

    cpu: Tensor
    cuda: dict[int, Tensor]

    @classmethod
    def now(cls, near: Sequence[Tensor]) -> RandomState:
        """As it is, for the devices of the given tensors."""
        devices = sorted({t.device.index for t in near if t.device.type == "cuda"})
        return cls(torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in devices})

    def restore(self) -> None:
        """Puts the generators back to where they stood."""
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)


def same_randomness(function: Callable[..., Value], near: Sequence[Tensor]) -> Callable[..., Value]:
    """The function, drawing at every call the random numbers that it would have drawn first.

    Afterwards the generators stand where one call leaves them.
    """
    state = RandomState.now(near)

    def call(*args: object) -> Value:
        state.restore()
        return function(*args)

    return call


def past_randomness(
    function: Callable[..., Value], state: RandomState, near: Sequence[Tensor]
) -> Callable[..., Value]:
    """The function, drawing at every call from ``state``; the generators do not move."""

    def call(*args: object) -> Value:
        now = RandomState.now(near)
        state.restore()
        try:
            return function(*args)
        finally:
            now.restore()

    return call
