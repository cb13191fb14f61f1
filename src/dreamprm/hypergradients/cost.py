"""What a computation costs, counted and not timed: operations, and bytes alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def operations(function: Callable[[], Any]) -> int:
    """Floating-point operations of the products, convolutions and attention in one call.

    Under MATH attention: torch does not count those of the CPU's fast kernel.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def peak_bytes(function: Callable[[], Any]) -> int:
    """Of the tensors that come to be during one call, the most that live at once, in bytes.

    What a kernel needs within itself is not seen.
    """
    with _Alive() as alive:
        function()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows the storages that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = storage._cdata
            if key not in self.bytes and key not in given:  # a view is not new
                self.bytes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self.bytes.pop(key)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """Of all tensors in a tree; a sparse one has those of its indices and of its values."""
    found = []
    for tensor in tree_leaves(tree):
        if isinstance(tensor, Tensor):
            parts = (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)
            found += [part.untyped_storage() for part in parts]
    return found
