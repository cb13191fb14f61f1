"""The arithmetic of a loss is the coarsest that any of its parameters and results has."""

from __future__ import annotations

import pytest
import torch

from dreamprm.hypergradients.precision import Precision

DOUBLE, FULL, HALF, BRAIN = torch.float64, torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("dtypes", "bits", "coarse"),
    [
        ([], 52, False),
        ([DOUBLE], 52, False),
        ([FULL, DOUBLE], 23, False),
        ([HALF, FULL], 10, True),
        ([FULL, BRAIN, DOUBLE], 7, True),
    ],
)
def test_the_coarsest_counts(dtypes: list[torch.dtype], bits: int, coarse: bool) -> None:
    of_parameters = Precision(torch.ones(1, dtype=dtype) for dtype in dtypes)
    assert (of_parameters.bits, of_parameters.below_fp32) == (bits, coarse)
    tensors = [torch.ones(1, dtype=dtype) for dtype in dtypes]
    with Precision() as of_results:
        for tensor in tensors:
            tensor.exp()
        torch.ones(1, dtype=DOUBLE).split(1)  # finer, and a tuple
    assert (of_results.bits, of_results.below_fp32) == (bits, coarse)


def test_whole_numbers_have_no_say() -> None:
    with Precision([torch.ones(1)]) as precision:
        torch.ones(1, dtype=torch.int8) + 1
    assert precision.bits == 23
