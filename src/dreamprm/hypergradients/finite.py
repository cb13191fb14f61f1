"""Whether tensors are finite, by one reduction over all of them and one synchronisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils import get_total_norm


def is_finite(tensors: Sequence[Tensor], order: float = math.inf) -> bool:
    """Whether a norm of all tensors together is finite.

    Args:
        tensors: floating-point ones, dense or sparse, of any shapes, types and devices.
        order: of the norm; by 2, entries whose squares overflow are not finite either.
    """
    # torch refuses to take the infinity norm of an empty tensor.
    values = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    norm = get_total_norm([tensor for tensor in values if tensor.numel()], order)
    return bool(norm.isfinite())
