"""The reference problems and a small network, for the tests of hypergradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import (
    dropout,
    scaled_dot_product_attention,
    softplus,
)

from dreamprm.hypergradients import (
    hypergradient,
    resolve,
)
from dreamprm.hypergradients.interface import OPTIMIZER, STEPS
from dreamprm.hypergradients.references import (
    VARIABLES,
    Reference,
    weighted_logistic,
    weighted_ridge,
)

EXACT = ("double_backward", "forward")
REFERENCES = {"ridge": weighted_ridge(direct=1.0), "logistic": weighted_logistic(direct=1.0)}
EYE = torch.eye(VARIABLES, dtype=torch.float64)


def largest_eigenvalue(reference: Reference) -> float:
    return float(torch.linalg.eigvalsh(reference.hessian())[-1])


def run(reference: Reference, method: str, **options: Any) -> Tensor:
    """dM/dα, with a lower optimizer for the methods that need one."""
    return call(method, reference.upper, reference.lower, reference.parameters(), **options)(
        [reference.alpha]
    )[0]


def call(
    method: str,
    upper: Callable[..., Tensor],
    lower: Callable[..., Tensor],
    params: Any,
    **options: Any,
) -> Callable[[Any], Any]:
    needs = resolve(method).needs
    if needs & {OPTIMIZER, STEPS}:
        tensors = list(params.values()) if isinstance(params, dict) else params
        options = {"optimizer": torch.optim.SGD(tensors, lr=0.1)} | options
        if STEPS in needs:
            options = {"iterations": 2} | options
    if method.startswith("nystrom"):
        options = {"rank": 3} | options
    return lambda alpha: hypergradient(method, upper, lower, params, alpha, **options)


def small_network_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    """Two domains of three inputs each through a layer with dropout and causal attention."""
    x = torch.linspace(-1, 1, 48, dtype=lower[0].dtype).reshape(6, 2, 4)
    hidden = dropout(torch.tanh(x @ lower[0]), 0.5)
    # A head is four numbers wide.
    mixed = scaled_dot_product_attention(hidden[:, None], hidden[:, None], hidden[:, None])
    losses = (mixed[:, 0] @ lower[1]).square().mean((1, 2))
    return (softplus(upper[0])[torch.tensor([0, 0, 0, 1, 1, 1])] * losses).mean()


def small_network(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    lower = [torch.randn(4, 4, generator=generator), torch.randn(4, 3, generator=generator)]
    return [t.to(dtype) for t in lower], [torch.zeros(2, dtype=dtype)]


def small_upper(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    return sum(p.square().sum() for p in lower)  # type: ignore[return-value]


def loss_without_dropout(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    x = torch.linspace(-1, 1, 32).reshape(8, 4)
    losses = (torch.tanh(x @ lower[0]) @ lower[1]).float().square().mean(1)
    return (softplus(upper[0])[torch.tensor([0, 1] * 4)] * losses).mean()


def in_bf16(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def autocast(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(lower, upper)

    return autocast
