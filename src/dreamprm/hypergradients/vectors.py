"""Lists of tensors as vectors: what solvers, products and steps compute with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = list[Tensor]
Linear: TypeAlias = Callable[[Tensors], Tensors]


def add(left: Tensors, right: Tensors, factor: float = 1.0) -> Tensors:
    """left + factor · right."""
    return [torch.add(a, b, alpha=factor) for a, b in zip(left, right, strict=True)]


def shifted(linear: Linear, by: float) -> Linear:
    """q ↦ linear(q) + by · q."""
    return (lambda q: add(linear(q), q, by)) if by else linear


def dot(left: Tensors, right: Tensors) -> float:
    """The inner product of all entries, as :func:`inner_products` sums it."""
    return float(inner_products(left, right).sum())


def inner_products(left: Tensors, right: Tensors) -> Tensor:
    """That of every pair of tensors, [t] in float64; within one in at least float32."""
    pairs = zip(left, right, strict=True)
    return torch.stack([(at_least_fp32(a) * at_least_fp32(b)).sum().double() for a, b in pairs])


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it is of less precision."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def norm(tensors: Tensors) -> float:
    """The Euclidean norm of all entries."""
    return math.sqrt(sum(squares(tensors)))


def squares(tensors: Tensors) -> list[float]:
    """The squared Euclidean norm of every tensor."""
    return [float(x) for x in inner_products(tensors, tensors).cpu()]


def flatten(tensors: Tensors) -> Tensor:
    """All entries in one dimension, in at least float32."""
    return torch.cat([at_least_fp32(t).reshape(-1) for t in tensors])


def shaped_as(flat: Tensor, tensors: Tensors) -> Tensors:
    """Entries in one dimension in the shapes and types of ``tensors``."""
    pieces = flat.split([t.numel() for t in tensors])
    return [p.reshape(t.shape).to(t.dtype) for p, t in zip(pieces, tensors, strict=True)]
