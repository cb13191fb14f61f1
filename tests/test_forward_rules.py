"""The forward-mode rules written out here against torch's own, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from dreamprm.hypergradients.cost import operations
from dreamprm.hypergradients.forward_rules import ForwardRules


def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def agree(function: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """Values and tangents, for every choice of the tensors that have one."""
    tangents = [t.flip(0) + 0.5 for t in tensors]
    for chosen in itertools.product((False, True), repeat=len(tensors)):
        with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t, q) if dual else t
                for t, q, dual in zip(tensors, tangents, chosen, strict=True)
            ]
            expected = forward_ad.unpack_dual(function(*duals))
            with ForwardRules():
                found = forward_ad.unpack_dual(function(*duals))
            assert torch.allclose(found.primal, expected.primal, rtol=1e-12, atol=1e-14)
            if not any(chosen):
                assert found.tangent is None
                continue
            assert torch.allclose(found.tangent, expected.tangent, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    agree(linear, draw(shape, (6, 5), *([(6,)] if bias else [])))


MASK = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": MASK},  # its last row may look nowhere
        {"attn_mask": torch.where(MASK | (torch.arange(4) == 3), 0.5, -torch.inf).double()},
        {"enable_gqa": True},
    ],
)
def test_attention(options: dict[str, Any]) -> None:
    heads = 2 if options.get("enable_gqa") else 4
    tensors = draw((2, 4, 3, 8), (2, heads, 4, 8), (2, heads, 4, 8))
    agree(lambda q, k, v: scaled_dot_product_attention(q, k, v, **options), tensors)


def test_attentions_dropout_is_that_of_torch() -> None:
    tensors = draw((2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    agree(attention, tensors)


def test_a_mask_with_a_gradient_keeps_it() -> None:
    """α may enter by the mask: the tangent of its gradient is asked for."""
    q, k, v, mask, along = draw((4, 3, 8), (4, 5, 8), (4, 5, 8), (3, 5), (4, 3, 8))

    def gradient(q: Tensor, bias: Tensor) -> Tensor:
        loss = scaled_dot_product_attention(q, k, v, attn_mask=bias).square().sum()
        return torch.autograd.grad(loss, bias, create_graph=True)[0]

    with sdpa_kernel(SDPBackend.MATH):
        leaf, bias = q.clone().requires_grad_(), mask.clone().requires_grad_()
        rows = gradient(leaf, bias).flatten()
        jacobian = torch.stack([torch.autograd.grad(r, leaf, retain_graph=True)[0] for r in rows])
        with ForwardRules(), forward_ad.dual_level():
            found = forward_ad.unpack_dual(gradient(forward_ad.make_dual(q, along), bias)).tangent
    assert found is not None
    expected = (jacobian * along).sum((1, 2, 3)).reshape(3, 5)
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_silu_and_masked_scatter() -> None:
    agree(silu, draw((3, 4)))
    mask = torch.arange(6).reshape(2, 3, 1) % 2 == 0
    agree(lambda x, source: x.masked_scatter(mask, source), draw((2, 3, 4), (5, 4)))


@pytest.mark.parametrize(
    "function",
    [
        silu,
        lambda x: x.masked_scatter(x > 0, 2 * x.flip(0)),
        lambda x: linear(x, 0.5 * x + 1, x[:, 0]),
        lambda x: scaled_dot_product_attention(x, 2 * x, x.flip(0)),
    ],
)
def test_gradients_have_tangents(function: Callable[[Tensor], Tensor]) -> None:
    """Held against double backward; for the first two, torch's own rules fail here."""
    x, q = draw((3, 4), (3, 4))
    leaf = x.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(function(leaf).pow(3).sum(), leaf, create_graph=True)
        (expected,) = torch.autograd.grad(gradient, leaf, q)
    with sdpa_kernel(SDPBackend.MATH), ForwardRules(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), q)
        (gradient,) = torch.autograd.grad(function(dual).pow(3).sum(), dual)
        found = forward_ad.unpack_dual(gradient).tangent
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_nothing_is_multiplied_by_zeros() -> None:
    x, weight = draw((7, 5), (6, 5))
    once = operations(lambda: linear(x, weight))

    def tangent_of_input() -> None:
        with ForwardRules(), forward_ad.dual_level():
            linear(forward_ad.make_dual(x, x), weight)

    assert operations(tangent_of_input) == 2 * once
