"""A reweighting engine that has run, as a case on which hypergradient methods are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamprm.data.batches import map_tensors
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.hypergradients import Method
from dreamprm.hypergradients.comparison import Case, hypergradient_at, same_in_double_backward
from dreamprm.hypergradients.interface import Loss
from dreamprm.hypergradients.vectors import Tensors
from dreamprm.problems.base import Problem
from dreamprm.problems.stateless import StatelessLoss


def case_of(
    engine: ReweightingEngine,
    name: str,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Case:
    """The problems of an engine, on the batches of their last steps, in an arithmetic.

    A method is held against itself in float64 with products by double backward.

    Args:
        engine: that has run.
        name: of the case.
        dtype: of the parameters; of the batches too where it is float64.
        autocast: whether the losses run under bf16 autocast.
        around: every evaluation of a loss is.
    """
    below, above = engine.lower, engine.upper
    assert above is not None

    def cast(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    def loss(problem: Problem) -> Loss:
        batches = problem.batches
        if dtype == torch.float64:
            batches = [map_tensors(batch, cast) for batch in batches]
        stateless = StatelessLoss(problem, below, above, batches, autocast=False).of

        def value(lower: Tensors, upper: Tensors) -> Tensor:
            device = lower[0].device.type
            with around(), torch.autocast(device, torch.bfloat16, enabled=autocast):
                return stateless(lower, upper)

        return value

    def exact(method: Method, options: Mapping[str, Any]) -> Tensor:
        method = same_in_double_backward(method)
        options = {name: value for name, value in options.items() if name in method.options}
        return hypergradient_at(
            method, case_of(engine, name, torch.float64, around=around), options
        )

    own = below.trainable_parameters()
    lower = [p.detach().to(dtype, copy=True) for p in own]
    at_least_fp32 = torch.promote_types(dtype, torch.float32)
    upper = [p.detach().to(at_least_fp32, copy=True) for p in above.trainable_parameters()]
    optimizer = _over(lower, below.optimizer, dict(zip(own, lower, strict=True)))
    return Case(name, loss(below), loss(above), lower, upper, optimizer, exact)


def _over(lower: Tensors, optimizer: Optimizer, places: Mapping[Any, Tensor]) -> Optimizer:
    """The same optimizer with its state, over other tensors."""
    groups = [
        {**group, "params": [places[p] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    found = type(optimizer)(groups)  # type: ignore[call-arg]
    found.load_state_dict(optimizer.state_dict())
    return found
