"""Optimizer steps as pure functions, so that hypergradients can see through them.

A step is φ' , s' = U(φ, g, s): parameters, gradient, and the optimizer's state (momenta, in float
tensors). ``torch.optim`` writes in place and cannot be differentiated; the same arithmetic is
written out here for SGD, Adam and AdamW, and held against torch's in tests/test_updates.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from dreamprm.errors import UserError
from dreamprm.hypergradients.vectors import Linear, Tensors

State: TypeAlias = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Rule:
    """How one parameter is updated: the settings of its group, at the learning rate of the step.

    Attributes:
        kind: ``"sgd"``, ``"adam"``, or ``"skip"`` for a parameter that got no gradient.
        lr: learning rate.
        weight_decay: its factor.
        decoupled: weight decay apart from the gradient, as in AdamW.
        momentum, dampening, nesterov: of SGD.
        betas, eps: of Adam.
        step: how many steps were taken before this one.
    """

    kind: str
    lr: float
    weight_decay: float = 0.0
    decoupled: bool = False
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    step: int = 0

    def __call__(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of this parameter: the new value and the new state."""
        if self.kind == "skip":
            return p, state
        if self.decoupled:
            p = p * (1 - self.lr * self.weight_decay)
        elif self.weight_decay:
            g = g + self.weight_decay * p
        return self._sgd(p, g, state) if self.kind == "sgd" else self._adam(p, g, state)

    def next(self) -> Rule:
        """The same rule one step later."""
        return replace(self, step=self.step + 1)

    def _sgd(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.momentum:
            return p - self.lr * g, {}
        if "momentum_buffer" in state:
            buffer = self.momentum * state["momentum_buffer"] + (1 - self.dampening) * g
        else:
            buffer = g
        direction = g + self.momentum * buffer if self.nesterov else buffer
        return p - self.lr * direction, {"momentum_buffer": buffer}

    def _adam(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self.betas
        m = first * state["exp_avg"] + (1 - first) * g if state else (1 - first) * g
        v = second * state["exp_avg_sq"] + (1 - second) * g * g if state else (1 - second) * g * g
        correct_m = 1 - first ** (self.step + 1)
        correct_v = 1 - second ** (self.step + 1)
        # An entry whose gradient has always been zero does not move, and the lower loss does not
        # depend on it: its derivative, (1 − β₁)/ε, would only be large noise, and √ has none at 0.
        moved = v > 0
        root = torch.where(moved, v, 1).sqrt() / math.sqrt(correct_v) + self.eps
        update = torch.where(moved, self.lr / correct_m * m / root, 0)
        return p - update, {"exp_avg": m, "exp_avg_sq": v}


def read_optimizer(optimizer: Optimizer, parameters: Sequence[Tensor]) -> tuple[list[Rule], State]:
    """The rule and a copy of the state of every parameter, as they are for the next step.

    Args:
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW`` over these very tensors.
        parameters: φ.

    Raises:
        UserError: it is another optimizer or has an option that is not written out here, or it
            does not hold one of the parameters.
    """
    if not isinstance(optimizer, SGD | Adam):
        raise UserError(
            f"the lower optimizer is {type(optimizer).__name__}; "
            "its steps can be differentiated for SGD, Adam and AdamW"
        )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rules: list[Rule] = []
    states: State = []
    for index, p in enumerate(parameters):
        if id(p) not in groups:
            raise UserError(
                f"the optimizer does not hold lower parameter {index}, of shape {tuple(p.shape)}"
            )
        group = groups[id(p)]
        for name in ("amsgrad", "maximize"):
            if group.get(name):
                raise UserError(f"{name}=True of the lower optimizer cannot be differentiated here")
        state = optimizer.state.get(p, {})
        rate, decay = float(group["lr"]), float(group["weight_decay"])
        if isinstance(optimizer, SGD):
            names: tuple[str, ...] = ("momentum_buffer",)
            rule = Rule(
                "sgd",
                rate,
                decay,
                momentum=float(group["momentum"]),
                dampening=float(group["dampening"]),
                nesterov=group["nesterov"],
            )
        else:
            names = ("exp_avg", "exp_avg_sq")
            first, second = group["betas"]
            rule = Rule(
                "adam",
                rate,
                decay,
                decoupled=bool(group.get("decoupled_weight_decay")),
                betas=(float(first), float(second)),
                eps=float(group["eps"]),
                step=int(state.get("step", 0)),
            )
        rules.append(rule)
        states.append(
            {n: state[n].detach().clone() for n in names if isinstance(state.get(n), Tensor)}
        )
    return rules, states


def damping_of_decay(optimizer: Optimizer, parameters: Sequence[Tensor]) -> float:
    """The damping of H that stands for the weight decay that the optimizer adds by itself.

    Where the steps end, ∇L + ρφ = 0, so that the hypergradient needs H + ρI: with weight decay λ, ρ
    is λ for SGD and Adam. AdamW's decay does not go through the preconditioner: ρ = λ(√v̂ + ε), one
    number an entry, v̂ the corrected second moment; given is their mean.

    Args:
        optimizer: as of :func:`read_optimizer`.
        parameters: φ.

    Returns:
        ρ, the mean over all entries; 0 where nothing decays.

    Raises:
        UserError: as of :func:`read_optimizer`.
    """
    rules, states = read_optimizer(optimizer, parameters)
    total = 0.0
    for rule, state, p in zip(rules, states, parameters, strict=True):
        scale = 1.0
        if rule.decoupled:
            corrected = 1 - rule.betas[1] ** rule.step
            root = float(state["exp_avg_sq"].sqrt().mean()) if rule.step else 0.0
            scale = (root / math.sqrt(corrected) if rule.step else 0.0) + rule.eps
        total += rule.weight_decay * scale * p.numel()
    return total / sum(p.numel() for p in parameters)


def update(
    rules: Sequence[Rule], params: Tensors, grads: Tensors, state: State, clip: float = 0.0
) -> tuple[Tensors, State]:
    """φ', s' = U(φ, g, s), differentiable in all three.

    Args:
        rules: one per parameter.
        params, grads: φ and g.
        state: s, as :func:`read_optimizer` gives it.
        clip: largest norm of g, as ``torch.nn.utils.clip_grad_norm_`` clips; 0 for none.
    """
    if clip:
        total = torch.stack([g.norm() for g in grads]).norm()
        factor = (clip / (total + 1e-6)).clamp(max=1.0)
        grads = [g * factor for g in grads]
    steps = [rule(p, g, s) for rule, p, g, s in zip(rules, params, grads, state, strict=True)]
    return [p for p, _ in steps], [s for _, s in steps]


def preconditioner(
    rules: Sequence[Rule], params: Tensors, grads: Tensors, state: State, clip: float = 0.0
) -> Linear:
    """Product with Dᵀ, D = ∂u/∂g of the step φ' = φ − u(g) at (φ, g, s); arguments as above."""

    def product(v: Tensors) -> Tensors:
        leaves = [g.detach().requires_grad_() for g in grads]
        with torch.enable_grad():
            after, _ = update(rules, [p.detach() for p in params], leaves, state, clip)
        # A skipped parameter stays as it is, whatever its gradient.
        moved = [(a, x) for a, x in zip(after, v, strict=True) if a.requires_grad]
        if not moved:
            return [torch.zeros_like(x) for x in v]
        outputs, vectors = zip(*moved, strict=True)
        found = torch.autograd.grad(
            outputs, leaves, vectors, allow_unused=True, materialize_grads=True
        )
        return [-d for d in found]

    return product
