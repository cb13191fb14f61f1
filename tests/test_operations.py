"""Every product on every operation of the zoo against float64; and the oracle sees the faults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dreamprm.hypergradients import forward_rules, nodes, products, soundness
from dreamprm.hypergradients.operations import Operation
from dreamprm.hypergradients.products import PRODUCTS, ForwardMode
from dreamprm.hypergradients.soundness import APART, GRADIENT, REFUSED, RIGHT, WRONG, judge
from dreamprm.hypergradients.zoo import operations

# torch 2.13 has no derivatives here; what a later one has may leave these lists.
NO_FORWARD = {
    "autograd.Function without jvp",
    "cdist",
    "cdist, p = 1",
    "checkpoint, reentrant",
    "ctc",
    "embedding bag",
    "grid_sample",
    "hardsigmoid",
    "huber",
    "index_reduce, mean",
    "index_reduce, prod",
    "multi margin",
    "once_differentiable",
    "scatter_reduce, prod",
    "spectral_norm",
    "straight-through",
    "triangular_solve",
}
NO_DOUBLE_BACKWARD = {
    "cdist",
    "cdist, p = 1",
    "checkpoint, reentrant",
    "ctc",
    "embedding bag",
    "hardsigmoid",
    "multi margin",
    "once_differentiable",
}


def named(*names: str) -> list[Operation]:
    return [operation for operation in operations() if operation.name in names]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_is_silently_wrong(dtype: torch.dtype) -> None:
    verdicts = list(judge(operations(), dtype))
    assert len({v.operation for v in verdicts}) > 190
    assert [v for v in verdicts if v.status == WRONG] == []
    refused: dict[str, set[str]] = {}
    for verdict in verdicts:
        if verdict.status == REFUSED:
            refused.setdefault(verdict.product, set()).add(verdict.operation)
    mkldnn = {"LSTM"} if dtype == torch.float32 else set()
    assert refused == {
        "forward": NO_FORWARD | mkldnn,
        "double_backward": NO_DOUBLE_BACKWARD,
        "finite_difference": {"checkpoint, reentrant"},
        GRADIENT: {"checkpoint, reentrant"},
    }


def wrong(*names: str) -> set[tuple[str, str]]:
    found = judge(named(*names))
    return {(v.operation, v.product) for v in found if v.status == WRONG}


def test_torch_is_wrong_where_the_fast_backward_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        *("det", "det, batched", "logdet", "slogdet", "solve", "tensorsolve"),
        *("prod, two zeros", "cumprod, two zeros"),
    ]
    assert wrong(*names) == set()
    monkeypatch.setattr(nodes, "BRANCHING", frozenset())
    assert wrong(*names) == {(name, "forward") for name in names}


@pytest.mark.parametrize(
    ("name", "rules", "product"),
    [
        ("weight_norm", forward_rules.ReverseRules, "double_backward"),
        ("weight_norm, old", forward_rules.ReverseRules, "double_backward"),
        ("cholesky_inverse", forward_rules.ForwardRules, "forward"),
        ("triangular_solve", forward_rules.ForwardRules, "forward"),
        ("scatter_reduce, prod", forward_rules.ForwardRules, "forward"),
    ],
)
def test_torch_is_wrong_without_the_rule(
    name: str, rules: Any, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RULES", {})
    assert wrong(name) == {(name, product)}


def test_torch_takes_what_is_once_differentiable_for_a_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "need_second_derivatives", lambda value: None)
    assert wrong("once_differentiable") == {("once_differentiable", "double_backward")}


def test_torch_is_wrong_about_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "recomputing_alike", lambda loss: loss)
    assert ("checkpoint", "double_backward") in wrong("checkpoint")


class _Halved(torch.autograd.Function):
    """x², with a half of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * grads[0]


def test_a_wrong_first_gradient_is_seen() -> None:
    verdicts = list(judge([Operation("halved", _Halved.apply, ((5,),))]))
    assert (verdicts[0].product, verdicts[0].status) == (GRADIENT, WRONG)
    assert verdicts[0].error is not None
    assert verdicts[0].error > 0.1


def test_what_stands_for_another_function_is_held_against_that_one() -> None:
    verdicts = {v.product: v for v in judge(named("straight-through, detach"))}
    assert verdicts["double_backward"].status == verdicts["forward"].status == RIGHT
    assert verdicts["finite_difference"].status == APART


@pytest.mark.parametrize("product", ["forward", "finite_difference"])
def test_weights_inside_of_a_determinant(product: str) -> None:
    """The cross product then passes through the backward of ``det``, and not only ``hvp``."""
    generator = torch.Generator().manual_seed(0)
    w, a, v = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(3))

    def loss(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        return torch.linalg.det(phi[0] @ alpha[0] + phi[0]).square()

    (found,) = PRODUCTS[product](loss, [w], [a]).cross([v])
    (expected,) = PRODUCTS["double_backward"](loss, [w], [a]).cross([v])
    # Differences: the square of their step, 5e-6, times third derivatives.
    assert (found - expected).norm() < (1e-12 if product == "forward" else 1e-6) * expected.norm()


def test_a_backward_pass_that_fails_leaves_the_grad_mode_alone() -> None:
    def broken(grad: Tensor) -> None:
        raise ZeroDivisionError

    def loss(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        inverse = torch.linalg.solve(phi[0] * 1, alpha[0])
        inverse.register_hook(broken)
        return inverse.sum()

    eye = torch.eye(3)
    with torch.no_grad(), pytest.raises(ZeroDivisionError), torch.enable_grad():
        ForwardMode(loss, [eye], [eye]).hvp([eye])
    assert torch.is_grad_enabled()
