"""Rules for what torch 2.13 differentiates wrongly, not at all, or only wastefully.

``linear`` multiplies by zeros where the weight or the input has no tangent (a third of all
operations with LoRA), and attention keeps more score matrices alive than it needs: both are written
out where no gradient is asked for. Where one is, its graph must see the tangents, and torch's own
rules hold, but for two backwards: ``silu_backward`` has no forward mode, and that of
``masked_scatter``, by which image features get among token embeddings, fails on shapes.

Silently wrong in torch are: the second derivative of ``weight_norm``, whose backward pass takes
the norms for constants; the tangents of ``cholesky_inverse`` and ``triangular_solve``; and those of
``scatter_reduce`` by products, which are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.overrides import TorchFunctionMode


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    return x * x.sigmoid() if x.requires_grad else silu(x)


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    mask = mask.expand_as(x)
    return x.index_put((mask,), source.reshape(-1)[: int(mask.sum())])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    tensors = [x, weight, *([] if bias is None else [bias])]
    if any(t.requires_grad for t in tensors):
        return linear(x, weight, bias)
    (x, of_x), (weight, of_weight), *rest = map(forward_ad.unpack_dual, tensors)
    bias, of_bias = rest[0] if rest else (None, None)
    value = linear(x, weight, bias)
    parts = [linear(x, of_weight, of_bias)] if of_weight is not None else []
    parts += [linear(of_x, weight)] if of_x is not None else []
    if of_bias is not None and of_weight is None:
        parts.append(of_bias.to(value.dtype).expand_as(value))
    return _dual(value, parts)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    tensors = [query, key, value]
    masks = [] if attn_mask is None else [attn_mask]
    duals = [forward_ad.unpack_dual(t) for t in tensors]
    if (
        dropout_p
        or any(t.requires_grad for t in (*tensors, *masks))
        or all(tangent is None for _, tangent in duals)
    ):
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    (q, of_q), (k, of_k), (v, of_v) = duals
    if enable_gqa:
        k, of_k, v, of_v = (
            t if t is None else t.repeat_interleave(q.shape[-3] // t.shape[-3], -3)
            for t in (k, of_k, v, of_v)
        )
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, of_q = (t if t is None else t * scale for t in (q, of_q))
    scores = q @ k.mT
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    shares = scores.softmax(-1).to(v.dtype)
    if attn_mask is not None:  # a row that may look nowhere gives zeros
        shares = shares.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0)
    parts = [shares @ of_v] if of_v is not None else []
    of_scores = [of_q @ k.mT] if of_q is not None else []
    of_scores += [q @ of_k.mT] if of_k is not None else []
    if of_scores:
        of_score = of_scores[0] if len(of_scores) == 1 else of_scores[0].add_(of_scores[1])
        of_score.mul_(shares)
        of_score.addcmul_(shares, of_score.sum(-1, keepdim=True), value=-1)
        parts.append(of_score @ v)
    return _dual(shares @ v, parts)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    one = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.cholesky_solve(one.expand_as(factor), factor, upper)


def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    if reduce == "prod":
        raise NotImplementedError("dropped by scatter_reduce with products")
    return x.scatter_reduce(dim, index, src, reduce, include_self=include_self)


def _triangular_solve(*args: Any, **kwargs: Any) -> Tensor:
    raise NotImplementedError("wrong of triangular_solve: take torch.linalg.solve_triangular")


def _dual(value: Tensor, parts: list[Tensor]) -> Tensor:
    """The value with the sum of the parts as its tangent."""
    if not parts:
        return value
    tangent = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
    return forward_ad.make_dual(value, tangent)


class _Rules(TorchFunctionMode):
    """Puts rules in the places of torch's."""

    RULES: ClassVar[dict[Callable[..., Any], Callable[..., Tensor]]]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.RULES.get(func, func)(*args, **(kwargs or {}))


class ReverseRules(_Rules):
    """For gradients of gradients."""

    RULES: ClassVar = {torch._weight_norm: _weight_norm}


class ForwardRules(_Rules):
    """For tangents, also of gradients."""

    RULES: ClassVar = ReverseRules.RULES | {
        silu: _silu,
        linear: _linear,
        scaled_dot_product_attention: _attention,
        Tensor.masked_scatter: _masked_scatter,
        torch.masked_scatter: _masked_scatter,
        torch.cholesky_inverse: _cholesky_inverse,
        Tensor.cholesky_inverse: _cholesky_inverse,
        torch.triangular_solve: _triangular_solve,
        Tensor.triangular_solve: _triangular_solve,
        torch.scatter_reduce: _scatter_reduce,
        Tensor.scatter_reduce: _scatter_reduce,
    }
