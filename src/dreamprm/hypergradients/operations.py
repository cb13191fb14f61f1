"""What an operation of the zoo is; see zoo.py and zoo_networks.py.

What is drawn is exact in float32, so that the same point can be taken in float32 and in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Operation:
    """A function of a few tensors, whose second derivatives are asked of every product.

    Attributes:
        name: as people call it.
        function: its arguments have the ``shapes``; its result has any shape.
        shapes: of the arguments, which are all differentiated.
        derived_as: the function that it stands for in derivatives, where that is another one.
        apart: products (or ``gradient``) whose answer is another one by its nature, and why.
    """

    name: str
    function: Function
    shapes: tuple[tuple[int, ...], ...]
    derived_as: Function | None = None
    apart: Mapping[str, str] = field(default_factory=dict)

    def point(self, like: Tensor) -> list[Tensor]:
        """Its arguments, in the type of ``like`` and on its device."""
        return [drawn(shape, like, seed) for seed, shape in enumerate(self.shapes)]


def drawn(shape: tuple[int, ...], like: Tensor, seed: int = 0) -> Tensor:
    """Numbers between −1.2 and 1.2, all different, the same for all types and devices."""
    generator = torch.Generator().manual_seed(100 * seed + sum(shape))
    values = 2.4 * torch.rand(shape, generator=generator) - 1.2
    return values.to(like)


def constant(x: Tensor) -> Tensor:
    """Numbers in the shape of x that do not depend on it."""
    return drawn(tuple(x.shape), x, seed=7)


def of_module(module: nn.Module) -> Function:
    """The module as a function of its parameters and its inputs; what it holds is left alone."""
    names = [name for name, _ in module.named_parameters()]

    def function(*tensors: Tensor) -> Tensor:
        module.to(tensors[0])
        lent = {name: buffer.clone() for name, buffer in module.named_buffers()}
        lent |= dict(zip(names, tensors, strict=False))
        found = torch.func.functional_call(module, lent, tensors[len(names) :])
        return found[0] if isinstance(found, tuple) else found

    return function
