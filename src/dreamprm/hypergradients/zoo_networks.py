"""The zoo's layers and losses of networks, and modules."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from dreamprm.hypergradients.operations import Function, Operation, constant, of_module

V = (6,)


def _op(name: str, function: Function, *shapes: tuple[int, ...]) -> Operation:
    return Operation(name, function, shapes)


def _module(name: str, module: nn.Module, *inputs: tuple[int, ...], **options: Any) -> Operation:
    shapes = [tuple(p.shape) for p in module.parameters()]
    return Operation(name, of_module(module), (*shapes, *inputs), **options)


def networks() -> list[Operation]:
    """What networks are made of."""
    ids, target = torch.tensor([0, 3, 3, 1]), torch.tensor([2, 0, 1])
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    heads, images = (2, 4, 3, 4), (2, 4, 4, 4)
    return [
        _op("linear", F.linear, (5, 3), (4, 3), (4,)),
        _op("bilinear", F.bilinear, (5, 3), (5, 2), (4, 3, 2)),
        _op("bmm", torch.bmm, (2, 3, 4), (2, 4, 2)),
        _op("einsum", lambda a, b: torch.einsum("bij,bjk->ik", a, b), (2, 3, 4), (2, 4, 2)),
        _op("conv1d", lambda x, w, b: F.conv1d(x, w, b, padding=1), (2, 3, 5), (4, 3, 3), (4,)),
        _op("conv2d", lambda x, w: F.conv2d(x, w, stride=2), images, (3, 4, 2, 2)),
        _op("conv2d, groups", lambda x, w: F.conv2d(x, w, groups=2), images, (6, 2, 2, 2)),
        _op("conv_transpose2d", F.conv_transpose2d, (2, 3, 3, 3), (3, 2, 2, 2)),
        _op("layer norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), (3, 4), (4,), (4,)),
        _op("rms norm", lambda x, w: F.rms_norm(x, (4,), w), (3, 4), (4,)),
        _op("group norm", lambda x, w, b: F.group_norm(x, 2, w, b), images, (4,), (4,)),
        _op("instance norm", F.instance_norm, images),
        _op("local response norm", lambda x: F.local_response_norm(x, 3), images),
        _op("embedding", lambda w: F.embedding(ids.to(w.device), w), (5, 3)),
        _op("embedding bag", lambda w: F.embedding_bag(ids.to(w.device)[None], w), (5, 3)),
        _op("softmax", lambda x: x.softmax(-1), (3, 4)),
        _op("log_softmax", lambda x: x.log_softmax(-1), (3, 4)),
        _op("cross entropy", lambda x: _entropy(x, target, label_smoothing=0.1), (3, 4)),
        _op("nll", lambda x: F.nll_loss(x.log_softmax(-1), target.to(x.device)), (3, 4)),
        _op("bce", lambda x: F.binary_cross_entropy(x.sigmoid(), constant(x).sigmoid()), V),
        _op("bce with logits", lambda x: F.binary_cross_entropy_with_logits(x, _half(x)), V),
        _op("mse", lambda x, y: F.mse_loss(x, y), V, V),
        _op("smooth l1", lambda x, y: F.smooth_l1_loss(x, y, beta=0.5), V, V),
        _op("huber", lambda x, y: F.huber_loss(x, y, delta=0.7), V, V),
        _op("kl_div", lambda x, y: F.kl_div(x.log_softmax(0), y.softmax(0)), V, V),
        _op("attention", _attend(), heads, heads, heads),
        _op("attention, causal", _attend(is_causal=True), heads, heads, heads),
        _op("attention, gqa", _attend(enable_gqa=True), heads, (2, 2, 3, 4), (2, 2, 3, 4)),
        _op(
            "attention, mask",
            lambda q, k, v: _attend(attn_mask=causal.to(q.device))(q, k, v),
            *(heads,) * 3,
        ),
        _op("rotary embedding", _rotate, (5, 4)),
        _op("dropout", lambda x: F.dropout(x.square(), 0.3), (5, 4)),
        _op("max_pool2d", lambda x: F.max_pool2d(x, 2), images),
        _op("avg_pool2d", lambda x: F.avg_pool2d(x, 3, padding=1), images),
        _op("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 3), images),
        _op("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 3), images),
        _op("upsample, nearest", lambda x: F.interpolate(x, scale_factor=2), images),
        _op("upsample, bilinear", lambda x: F.interpolate(x, size=5, mode="bilinear"), images),
        _op("upsample, bicubic", lambda x: F.interpolate(x, size=5, mode="bicubic"), images),
        _op("grid_sample", lambda x, g: F.grid_sample(x, g), images, (2, 3, 3, 2)),
        _op("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), images),
        _op("conv3d", F.conv3d, (1, 2, 3, 3, 3), (2, 2, 2, 2, 2)),
        _op("lp_pool2d", lambda x: F.lp_pool2d(x.exp(), 3, 2), images),
        _op("alpha_dropout", lambda x: F.alpha_dropout(x, 0.3, training=True), (5, 4)),
        _op("gaussian nll", lambda x, y: F.gaussian_nll_loss(x, constant(x), y.exp()), *(V,) * 2),
        _op("poisson nll", lambda x: F.poisson_nll_loss(x, constant(x)), V),
        _op("triplet margin", F.triplet_margin_loss, (3, 4), (3, 4), (3, 4)),
        _op("multi margin", lambda x: F.multi_margin_loss(x, target.to(x.device)), (3, 4)),
        _op("ctc", _ctc, (6, 4)),
        _op("fold", lambda x: F.fold(x.square(), (3, 3), 2), (1, 8, 4)),
        _op("unfold", lambda x: F.unfold(x, 2), images),
    ]


def _half(x: Tensor) -> Tensor:
    return constant(x).sigmoid()


def _entropy(x: Tensor, target: Tensor, **options: float) -> Tensor:
    return F.cross_entropy(x, target.to(x.device), **options)  # type: ignore[arg-type]


def _ctc(x: Tensor) -> Tensor:
    words = torch.tensor([1, 2, 2], device=x.device)
    return F.ctc_loss(x.log_softmax(-1), words, torch.tensor(6), torch.tensor(3))


def _rotate(q: Tensor) -> Tensor:
    """Rotary position embedding, of [positions, width]."""
    half = q.shape[-1] // 2
    angle = torch.arange(len(q))[:, None] / 10 ** (torch.arange(half) / half)
    cos, sin = (torch.cat([f(angle)] * 2, -1).to(q) for f in (torch.cos, torch.sin))
    return q * cos + torch.cat([-q[..., half:], q[..., :half]], -1) * sin


def _attend(**options: object) -> Function:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]

    return attend


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a new one
        return nn.utils.weight_norm(module)


class _Block(nn.Module):
    """A checkpointed part; ``reentrant`` is None for the same without a checkpoint."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 3))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.part(x).sigmoid()
        found = checkpoint(self.part, x, use_reentrant=self.reentrant)
        assert isinstance(found, Tensor)
        return found.sigmoid()


def modules() -> list[Operation]:
    """Modules with parameters."""
    layers, spectral = nn.TransformerEncoderLayer, parametrizations.spectral_norm
    constants = "the vectors of its power iteration are taken for constants"
    apart = dict.fromkeys(("gradient", "double_backward"), constants)
    return [
        _module("batch norm", nn.BatchNorm1d(3), (5, 3)),
        _module("batch norm, eval", nn.BatchNorm1d(3).eval(), (5, 3)),
        _module("LSTM cell", nn.LSTMCell(3, 2), (4, 3)),
        _module("GRU cell", nn.GRUCell(3, 2), (4, 3)),
        _module("RNN", nn.RNN(3, 2), (4, 2, 3)),
        _module("LSTM", nn.LSTM(3, 2, num_layers=2, bidirectional=True), (4, 2, 3)),
        _module("GRU", nn.GRU(3, 2), (4, 2, 3)),
        _module("transformer layer", layers(4, 2, 8, dropout=0.2), (3, 2, 4)),
        _module("transformer layer, eval", layers(4, 2, 8).eval(), (3, 2, 4)),
        _module("weight_norm", parametrizations.weight_norm(nn.Linear(3, 4)), (5, 3)),
        _module("weight_norm, old", _old_weight_norm(nn.Linear(3, 4)), (5, 3)),
        _module("spectral_norm", spectral(nn.Linear(3, 4)), (5, 3), apart=apart),
        _module("spectral_norm, eval", spectral(nn.Linear(3, 4)).eval(), (5, 3)),
        _module("orthogonal", parametrizations.orthogonal(nn.Linear(3, 3)), (5, 3)),
        _module("checkpoint", _Block(False), (5, 3), derived_as=of_module(_Block(None))),
        _module("checkpoint, reentrant", _Block(True), (5, 3), derived_as=of_module(_Block(None))),
    ]
