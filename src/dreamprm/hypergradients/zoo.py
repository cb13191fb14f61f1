"""The zoo's functions of tensors: pointwise ones, what moves elements, functions of matrices."""

from __future__ import annotations

import torch
from torch import Tensor, fft, linalg
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamprm.hypergradients.operations import Function, Operation, constant, drawn
from dreamprm.hypergradients.zoo_networks import modules, networks

MASK = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.bool)
INDEX = torch.tensor([[2, 0, 1], [1, 1, 0]])
ROWS = torch.tensor([1, 0])
MATRIX, VECTOR = (4, 4), (6,)
STEPS = "differences see the steps, not the estimator"


def operations() -> list[Operation]:
    """All of them; modules are built anew."""
    return [*networks(), *_pointwise(), *_own(), *_places(), *_matrices(), *modules()]


def _zoo(of: dict[str, Function], *shapes: tuple[int, ...]) -> list[Operation]:
    return [Operation(name, function, shapes) for name, function in of.items()]


def _pointwise() -> list[Operation]:
    """Activations, special functions and reductions."""
    plain: dict[str, Function] = {
        "relu": F.relu,
        "leaky relu": F.leaky_relu,
        "elu": F.elu,
        "selu": F.selu,
        "celu": F.celu,
        "relu6": F.relu6,
        "hardtanh": F.hardtanh,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "softshrink": F.softshrink,
        "gelu": F.gelu,
        "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "mish": F.mish,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "logsigmoid": F.logsigmoid,
        "softplus": F.softplus,
        "softsign": F.softsign,
        "glu": F.glu,
        "erf": torch.erf,
        "erfinv": lambda x: torch.erfinv(x / 2),
        "logit": lambda x: torch.logit(x.sigmoid()),
        "lgamma": lambda x: torch.lgamma(x + 2),
        "digamma": lambda x: torch.digamma(x + 2),
        "sinc": torch.sinc,
        "log1p and expm1": lambda x: torch.log1p(x.square()) + torch.expm1(x),
        "abs and sign": lambda x: x.abs() * x.sign() + x.abs(),
        "clamp": lambda x: x.clamp(-0.5, 0.5),
        "std": lambda x: x.reshape(2, 3).std(1),
        "var": lambda x: x.reshape(2, 3).var(1, correction=0),
        "logsumexp": lambda x: x.reshape(2, 3).logsumexp(1),
        "logcumsumexp": lambda x: x.logcumsumexp(0),
        "prod": lambda x: x.reshape(2, 3).prod(1),
        "cumsum": lambda x: x.square().cumsum(0),
        "cumprod": lambda x: x.cumprod(0),
        "norm": lambda x: x.reshape(2, 3).norm(dim=1),
        "norm, p = 3": lambda x: x.reshape(2, 3).norm(p=3, dim=1),
        "normalize": lambda x: F.normalize(x.reshape(2, 3)),
        "prod, two zeros": lambda x: _with_zeros(x).prod(),
        "cumprod, two zeros": lambda x: _with_zeros(x).cumprod(0),
        "polygamma": lambda x: torch.polygamma(1, x + 2),
        "i0e": torch.special.i0e,
        "ndtri": lambda x: torch.special.ndtri(x.sigmoid()),
        "nan_to_num": torch.nan_to_num,
        "nanmean": torch.nanmean,
        "threshold": lambda x: F.threshold(x, 0.1, -1.0),
        "rrelu": lambda x: F.rrelu(x, training=True),
        "gumbel_softmax": F.gumbel_softmax,
        "quantile": lambda x: x.quantile(0.3),
        "cov": lambda x: x.reshape(2, 3).cov(),
        "renorm": lambda x: x.reshape(2, 3).renorm(2, 0, 0.5),
        "trapezoid": lambda x: torch.trapezoid(x.square()),
    }
    two: dict[str, Function] = {
        "pow": lambda x, y: x.sigmoid() ** y,
        "atan2": torch.atan2,
        "hypot": torch.hypot,
        "xlogy": lambda x, y: torch.xlogy(x, y.exp()),
        "logaddexp": torch.logaddexp,
        "maximum": torch.maximum,
        "lerp": lambda x, y: torch.lerp(x, y, x * y),
        "prelu": lambda x, y: F.prelu(x, y[0]),
        "cross": lambda x, y: linalg.cross(x.reshape(2, 3), y.reshape(2, 3)),
        "cdist, p = 1": lambda x, y: torch.cdist(x.reshape(3, 2), y.reshape(3, 2), p=1.0),
        "cosine_similarity": lambda x, y: F.cosine_similarity(x, y, dim=0),
        "cdist": lambda x, y: torch.cdist(x.reshape(3, 2), y.reshape(3, 2)),
        "pairwise_distance": lambda x, y: F.pairwise_distance(x.reshape(3, 2), y.reshape(3, 2)),
    }
    return _zoo(plain, VECTOR) + _zoo(two, VECTOR, VECTOR)


def _with_zeros(x: Tensor) -> Tensor:
    """Two elements are zero at the point."""
    return torch.cat([x[:2] - drawn(VECTOR, x)[:2], x[2:]])


class _Cube(torch.autograd.Function):
    """A function of one's own with a backward pass only."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return 3 * x.square() * grads[0]


class _OnceCubed(_Cube):
    """The same, whose backward pass must not be differentiated."""

    backward = staticmethod(once_differentiable(_Cube.backward))  # type: ignore[assignment]


class _Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


def _own() -> list[Operation]:
    """Functions with derivatives of one's own."""

    def shifted(x: Tensor) -> Tensor:
        at = drawn(VECTOR, x)  # the point
        return x + (at.round() - at)

    def detached(x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()

    apart = {"finite_difference": STEPS}
    return [
        Operation("autograd.Function without jvp", _Cube.apply, (VECTOR,)),
        Operation("once_differentiable", _OnceCubed.apply, (VECTOR,)),
        Operation("straight-through", _Rounded.apply, (VECTOR,), shifted, apart),
        Operation("straight-through, detach", detached, (VECTOR,), shifted, apart),
    ]


def _places() -> list[Operation]:
    """What picks, orders and moves elements."""
    of: dict[str, Function] = {
        "max": lambda x: x.max(1).values,
        "amax": lambda x: x.amax(1),
        "median": lambda x: x.median(1).values,
        "topk": lambda x: x.topk(2).values,
        "sort": lambda x: x.sort(1).values,
        "kthvalue": lambda x: x.kthvalue(2).values,
        "cummax": lambda x: x.cummax(1).values,
        "gather": lambda x: x.gather(1, INDEX.to(x.device)),
        "take_along_dim": lambda x: x.take_along_dim(INDEX.to(x.device), 1),
        "index_select": lambda x: x.index_select(1, INDEX[0].to(x.device)),
        "scatter": lambda x: constant(x).scatter(1, INDEX[:1].to(x.device), x[:1]),
        "scatter_add": lambda x: constant(x).scatter_add(1, INDEX.to(x.device), x),
        "scatter_reduce, amax": lambda x: _reduced(x, "amax"),
        "scatter_reduce, mean": lambda x: _reduced(x, "mean"),
        "scatter_reduce, prod": lambda x: _reduced(x, "prod"),
        "index_reduce, mean": lambda x: constant(x).index_reduce(0, ROWS.to(x.device), x, "mean"),
        "index_reduce, prod": lambda x: constant(x).index_reduce(0, ROWS.to(x.device), x, "prod"),
        "index_put": lambda x: constant(x).index_put((MASK.to(x.device),), x.reshape(-1)[:4]),
        "index_add": lambda x: constant(x).index_add(0, ROWS.to(x.device), x),
        "masked_fill": lambda x: x.masked_fill(MASK.to(x.device), 0.3),
        "masked_select": lambda x: x.masked_select(MASK.to(x.device)),
        "masked_scatter": lambda x: x.masked_scatter(MASK.to(x.device), x.flip(0)),
        "where": lambda x: torch.where(MASK.to(x.device), x, x.square()),
        "in place": lambda x: x.clone().mul_(x).add_(x),
        "slices written": _written,
        "roll and flip": lambda x: x.roll(1, 1) * x.flip(1),
        "pad, constant": lambda x: F.pad(x, (1, 1)),
        "pad, reflect": lambda x: F.pad(x, (1, 1), mode="reflect"),
        "pad, replicate": lambda x: F.pad(x, (1, 1), mode="replicate"),
        "cat, stack and split": lambda x: torch.stack(torch.cat([x, x * x]).split(2)).sum(0),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
        "tril and diag_embed": lambda x: x.diag_embed().cumsum(-1).tril(),
        "kron": lambda x: torch.kron(x, x.flip(1)),
        "fft": lambda x: torch.view_as_real(fft.fft(x)),
        "rfft and irfft": lambda x: fft.irfft(fft.rfft(x) ** 2),
        "complex": lambda x: torch.polar(x.square(), x).exp().real,
    }
    return _zoo(of, (2, 3))


def _reduced(x: Tensor, how: str) -> Tensor:
    return constant(x).scatter_reduce(1, INDEX.to(x.device), x, how)


def _written(x: Tensor) -> Tensor:
    out = constant(x)
    out[0] = x[1] * x[0]
    out[1, :2] += x[0, 1:]
    return out


def _matrices() -> list[Operation]:
    """Functions of matrices."""
    of: dict[str, Function] = {
        "det": linalg.det,
        "logdet": lambda w: torch.logdet(_definite(w)),
        "slogdet": lambda w: linalg.slogdet(w).logabsdet,
        "inv": lambda w: linalg.inv(_definite(w)),
        "pinv": lambda w: linalg.pinv(w[:, :3]),
        "cholesky": lambda w: linalg.cholesky(_definite(w)),
        "cholesky_inverse": lambda w: torch.cholesky_inverse(linalg.cholesky(_definite(w))),
        "cholesky_solve": lambda w: torch.cholesky_solve(w, linalg.cholesky(_definite(w))),
        "eigvalsh": lambda w: linalg.eigvalsh(w + w.mT),
        "eigh": lambda w: linalg.eigh(w + w.mT).eigenvectors.square(),
        "eigvals": lambda w: linalg.eigvals(w).abs(),
        "svdvals": linalg.svdvals,
        "svd": lambda w: linalg.svd(w).U.square(),
        "qr": lambda w: linalg.qr(w).R,
        "lu": lambda w: linalg.lu(w).U,
        "matrix_exp": linalg.matrix_exp,
        "matrix_power": lambda w: linalg.matrix_power(w, 3),
        "spectral matrix norm": lambda w: linalg.matrix_norm(w, 2),
        "cond": linalg.cond,
        "householder_product": lambda w: linalg.householder_product(w, w[0] / 3),
        "multi_dot": lambda w: linalg.multi_dot([w, w.mT, w]),
        "det, batched": lambda w: linalg.det(torch.stack([w, w @ w])),
        "nuclear norm": lambda w: linalg.matrix_norm(w, "nuc"),
    }
    two: dict[str, Function] = {
        "solve": lambda w, b: linalg.solve(_definite(w), b),
        "solve_triangular": lambda w, b: linalg.solve_triangular(
            w.tril(-1) + torch.eye(4, dtype=w.dtype, device=w.device), b, upper=False
        ),
        "triangular_solve": lambda w, b: torch.triangular_solve(b, _definite(w)).solution,
        "lu_solve": lambda w, b: linalg.lu_solve(*linalg.lu_factor(_definite(w)), b),
        "lstsq": lambda w, b: linalg.lstsq(w[:, :3], b).solution,
        "tensorsolve": lambda w, b: linalg.tensorsolve(_definite(w), b[:, 0]),
    }
    return _zoo(of, MATRIX) + _zoo(two, MATRIX, (4, 2))


def _definite(w: Tensor) -> Tensor:
    return w @ w.mT + torch.eye(len(w), dtype=w.dtype, device=w.device)
