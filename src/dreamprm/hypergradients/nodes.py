"""What the nodes of a loss's graph say about its second derivatives in torch 2.13."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

# Where no graph is built, the backward passes of these compute without the tangents.
BRANCHING = frozenset(
    f"{name}Backward"
    for name in (
        "Cumprod",
        "FusedRmsNorm",
        "LinalgDet",
        "LinalgSlogdet",
        "LinalgSolveEx",
        "Logit",
        "Mish",
        "NativeGroupNorm",
        "Prod",
        "Silu",
    )
)


def keeping_tangents(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss, whose gradient has all of its tangents.

    Some of torch's backward passes have two formulas: one that can be differentiated, if a graph is
    built, and a faster one, which has no tangents or, silently, wrong ones. Those alone run as if a
    graph were built, so that nothing else costs more.
    """

    def call(*args: Any) -> Tensor:
        value = loss(*args)
        for node in _nodes(value):
            if node.name().rstrip("0123456789") in BRANCHING:
                node.register_prehook(lambda grads: _build_graph(True))
                node.register_hook(lambda inputs, outputs: _build_graph(False))
        return value

    return call


def need_second_derivatives(value: Tensor) -> None:
    """Refuses functions whose backward pass is ``once_differentiable``.

    ``autograd.grad`` takes it for a constant, without a word: the node that would raise the error
    does not lead to the inputs asked for.

    Raises:
        NotImplementedError: names the function.
    """
    for node in _nodes(value):
        function = getattr(node, "_forward_cls", None)
        backward = getattr(getattr(function, "backward", None), "__code__", None)
        if backward is _ONCE:
            name = getattr(function, "__name__", node.name())
            raise NotImplementedError(
                f"second derivatives of {name} are not implemented: "
                "its backward is once_differentiable"
            )


_ONCE = once_differentiable(lambda ctx: None).__code__


def _nodes(value: Tensor) -> Iterator[Node]:
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            yield node


def _build_graph(whether: bool) -> None:
    torch.set_grad_enabled(whether)
