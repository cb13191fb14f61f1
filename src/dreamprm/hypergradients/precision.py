"""In which arithmetic a loss runs, and which product is right for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TF32_BITS = 10
ARITHMETICS = {52: "float64", 23: "fp32", TF32_BITS: "fp16 or TF32", 7: "bf16"}


@cache
def mantissa_bits(dtype: torch.dtype) -> int:
    """Bits after the leading one: 52 for float64, 23 for float32, 10 for float16, 7 for bf16."""
    return round(-math.log2(torch.finfo(dtype).eps))


class PrecisionWarning(UserWarning):
    """Differences are taken in an arithmetic too coarse for them."""


class Precision(TorchFunctionMode):
    """Notes the coarsest arithmetic of the torch functions that are called inside it.

    What is looked at are the results' types, so that autocast is seen wherever it is switched on,
    and whether products and convolutions on CUDA may use TF32.

    Attributes:
        bits: of the coarsest mantissa seen; those of ``parameters`` to begin with.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bits = min((mantissa_bits(p.dtype) for p in parameters), default=52)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, Tensor) and each.is_floating_point():
                self.bits = min(self.bits, mantissa_bits(each.dtype))
                if each.is_cuda and self._uses_tf32(func):
                    self.bits = min(self.bits, TF32_BITS)
        return result

    def _uses_tf32(self, func: Callable[..., Any]) -> bool:
        convolves = getattr(func, "__name__", "").startswith("conv")
        backends: Any = torch.backends  # cudnn.conv is not in its stubs
        backend = backends.cudnn.conv if convolves else backends.cuda.matmul
        return backend.fp32_precision == "tf32"

    @property
    def below_fp32(self) -> bool:
        """Whether some of it was coarser than float32."""
        return self.bits < mantissa_bits(torch.float32)
