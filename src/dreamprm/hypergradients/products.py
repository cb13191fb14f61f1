"""Products: how the second derivatives of the lower loss are applied to a vector.

Each is built once per hypergradient from the lower loss and the point (φ, α), and has

    hvp(q)   = (∂²L/∂φ²) q      shaped as φ
    cross(q) = (∂²L/∂α∂φ)ᵀ q    shaped as α

All evaluations of one product draw the same random numbers, hence the same dropout mask: with
different ones, differences between evaluations would be mostly noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamprm.errors import UserError, need_positive
from dreamprm.hypergradients.solvers import Tensors

Loss = Callable[[Tensors, Tensors], Tensor]


class Product(Protocol):
    """What a hypergradient method needs of second derivatives."""

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q, shaped as φ."""

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q, shaped as α."""


class DoubleBackward:
    """Reverse over reverse: exact; keeps the graph of one evaluation and of its gradient.

    Runs under MATH attention, since the fast kernels have no second derivatives.
    """

    def __init__(self, loss: Loss, lower: Tensors, upper: Tensors) -> None:
        self.lower, self.upper = _leaves(lower), _leaves(upper)
        with sdpa_kernel(SDPBackend.MATH):
            value = _scalar(loss(self.lower, self.upper))
            _refuse_independence(value, self.upper)
            self.gradient = _grad(value, self.lower, create_graph=True)

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q, by the gradient of ∇_φ L · q."""
        return self._backward(q, self.lower)

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q, by the gradient of ∇_φ L · q."""
        return self._backward(q, self.upper)

    def _backward(self, q: Tensors, inputs: Tensors) -> Tensors:
        parts = [(g, v) for g, v in zip(self.gradient, q, strict=True) if g.requires_grad]
        if not parts:
            return [torch.zeros_like(x) for x in inputs]
        gradients, vectors = zip(*parts, strict=True)
        with sdpa_kernel(SDPBackend.MATH):
            return _grad(gradients, inputs, grad_outputs=vectors, retain_graph=True)


class ForwardMode:
    """Dual numbers: exact; for ``cross`` no graph over the backbone.

    φ becomes dual with tangent q, and the loss's tangent is ∇_φ L · q. Where α enters only at the
    loss, reverse-differentiating that tangent with respect to α reaches no further. ``hvp`` is
    forward over reverse. Runs under MATH attention, since the fast kernels have no forward mode.
    """

    def __init__(self, loss: Loss, lower: Tensors, upper: Tensors) -> None:
        self.loss = _with_same_randomness(loss, lower)
        self.lower, self.upper = lower, upper

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q: the tangents of ∇_φ L along q."""
        upper = [a.detach() for a in self.upper]
        with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(p, v) for p, v in zip(_leaves(self.lower), q, strict=True)
            ]
            gradient = _grad(_scalar(self.loss(duals, upper)), duals)
            tangents = [forward_ad.unpack_dual(g).tangent for g in gradient]
        return [
            torch.zeros_like(p) if t is None else t.detach()
            for p, t in zip(self.lower, tangents, strict=True)
        ]

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q: the gradient with respect to α of the loss's tangent along q."""
        upper = _leaves(self.upper)
        with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(p.detach(), v) for p, v in zip(self.lower, q, strict=True)
            ]
            value, tangent = forward_ad.unpack_dual(_scalar(self.loss(duals, upper)))
            _refuse_independence(value, upper)
            if tangent is None or not tangent.requires_grad:
                return [torch.zeros_like(a) for a in upper]
            return _grad(tangent, upper)


class FiniteDifference:
    """Central differences of gradients along q (Liu et al. 2019, arXiv 1806.09055, equation 8).

    The step is ε / ‖q‖. Two evaluations; for ``cross`` without a graph over the backbone. The
    parameters themselves are never changed, so nothing has to be restored.

    Args:
        loss, lower, upper: as for the other products.
        epsilon: length of the step in parameter space, more than 0.
    """

    def __init__(
        self, loss: Loss, lower: Tensors, upper: Tensors, *, epsilon: float = 0.01
    ) -> None:
        need_positive("epsilon", epsilon)
        self.loss = _with_same_randomness(loss, lower)
        self.lower, self.upper, self.epsilon = lower, upper, epsilon

    def hvp(self, q: Tensors) -> Tensors:
        """(∂²L/∂φ²) q, by differences of ∇_φ L."""
        upper = [a.detach() for a in self.upper]

        def gradient(point: Tensors) -> Tensors:
            point = _leaves(point)
            return _grad(_scalar(self.loss(point, upper)), point)

        return self._difference(gradient, q, self.lower)

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q, by differences of ∇_α L."""
        upper = _leaves(self.upper)

        def gradient(point: Tensors) -> Tensors:
            value = _scalar(self.loss(point, upper))
            _refuse_independence(value, upper)
            return _grad(value, upper)

        return self._difference(gradient, q, self.upper)

    def _difference(
        self, gradient: Callable[[Tensors], Tensors], q: Tensors, like: Tensors
    ) -> Tensors:
        # Summed in at least float32: squares of bf16 entries vanish or overflow.
        norm = math.sqrt(sum(float(_at_least_fp32(v).square().sum()) for v in q))
        if norm == 0:
            return [torch.zeros_like(x) for x in like]
        step = self.epsilon / norm
        ahead = gradient([p.detach() + step * v for p, v in zip(self.lower, q, strict=True)])
        behind = gradient([p.detach() - step * v for p, v in zip(self.lower, q, strict=True)])
        return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


PRODUCTS: dict[str, Callable[..., Product]] = {
    "double_backward": DoubleBackward,
    "forward": ForwardMode,
    "finite_difference": FiniteDifference,
}


def _leaves(tensors: Sequence[Tensor]) -> Tensors:
    """The same values as leaves of a new graph; the caller's tensors and their grads stay."""
    return [t.detach().requires_grad_() for t in tensors]


def _grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensors,
    grad_outputs: Sequence[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Tensors:
    """autograd.grad with zeros for what the outputs do not depend on."""
    return list(
        torch.autograd.grad(
            outputs,
            inputs,
            grad_outputs,
            retain_graph,
            create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _scalar(loss: Tensor) -> Tensor:
    if loss.numel() != 1:
        raise UserError(f"the lower loss has shape {tuple(loss.shape)}, expected a scalar")
    return loss.reshape(())


def _refuse_independence(loss: Tensor, upper: Tensors) -> None:
    """A hypergradient of zero would be right and useless: most likely a weight was forgotten."""
    grads: Sequence[Tensor | None] = (
        torch.autograd.grad(loss, upper, retain_graph=True, allow_unused=True)
        if loss.requires_grad
        else [None]
    )
    if all(g is None for g in grads):
        raise UserError("the lower loss does not depend on the upper parameters")


def _with_same_randomness(loss: Loss, near: Tensors) -> Loss:
    """The loss, drawing at every evaluation the random numbers that it would have drawn first.

    Afterwards the generators stand where one evaluation leaves them.
    """
    devices = sorted({t.device.index for t in near if t.device.type == "cuda"})
    state = torch.get_rng_state()
    device_states = [torch.cuda.get_rng_state(device) for device in devices]

    def evaluate(lower: Tensors, upper: Tensors) -> Tensor:
        torch.set_rng_state(state)
        for device, device_state in zip(devices, device_states, strict=True):
            torch.cuda.set_rng_state(device_state, device)
        return loss(lower, upper)

    return evaluate
