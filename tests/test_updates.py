"""The optimizer steps written out as pure functions, held against torch.optim's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dreamprm.errors import UserError
from dreamprm.hypergradients.updates import (
    damping_of_decay,
    preconditioner,
    read_optimizer,
    update,
)

OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda ps: SGD(ps, lr=0.1, weight_decay=0.02),
    "momentum": lambda ps: SGD(ps, lr=0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda ps: SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.02),
    "adam": lambda ps: Adam(ps, lr=0.1, weight_decay=0.02, betas=(0.8, 0.95), eps=1e-3),
    "adamw": lambda ps: AdamW(
        [{"params": ps[:1], "lr": 0.3, "weight_decay": 0.0}, {"params": ps[1:]}], lr=0.1
    ),
}


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=torch.float64) for n in (3, 4)]


def torch_step(
    optimizer: Optimizer, params: list[Tensor], grads: list[Tensor], clip: float
) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    if clip:
        nn.utils.clip_grad_norm_(params, clip)
    optimizer.step()


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch(name: str, clip: float) -> None:
    params = draw(0)
    optimizer = OPTIMIZERS[name](params)
    for seed in range(1, 4):  # the first step has no state yet
        rules, state = read_optimizer(optimizer, params)
        before = [p.clone() for p in params]
        found, after = update(rules, before, draw(seed), state, clip)
        torch_step(optimizer, params, draw(seed), clip)
        _, expected = read_optimizer(optimizer, params)
        for a, b in zip(found, params, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=0)
        for mine, torchs in zip(after, expected, strict=True):
            assert mine.keys() == torchs.keys()
            assert all(torch.allclose(mine[k], torchs[k], rtol=1e-12, atol=0) for k in mine)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_preconditioner_is_the_jacobian_of_torchs_own_step(name: str, clip: float) -> None:
    """Held against central differences of real optimizer steps in each entry of the gradient."""
    start = draw(0)
    grads, v = draw(2), draw(3)

    def after(shifted: list[Tensor]) -> Tensor:
        params = [p.clone() for p in start]
        optimizer = OPTIMIZERS[name](params)
        torch_step(optimizer, params, draw(1), clip)
        torch_step(optimizer, params, shifted, clip)
        return torch.cat(params)

    params = [p.clone() for p in start]
    optimizer = OPTIMIZERS[name](params)
    torch_step(optimizer, params, draw(1), clip)
    rules, state = read_optimizer(optimizer, params)
    found = torch.cat(preconditioner(rules, params, grads, state, clip)(v))

    flat, step = torch.cat(grads), 1e-6
    columns = []
    for i in range(len(flat)):
        shift = torch.zeros_like(flat)
        shift[i] = step
        ahead, behind = (
            after(list((flat + shift).split([3, 4]))),
            after(list((flat - shift).split([3, 4]))),
        )
        columns.append(-(ahead - behind) / (2 * step))
    jacobian = torch.stack(columns, dim=1)
    # Differences: rounding 1e-16 / 1e-6, and truncation of the order of the squared step.
    assert torch.allclose(found, jacobian.T @ torch.cat(v), rtol=1e-7, atol=1e-9)


def test_an_entry_that_never_had_a_gradient_has_no_say() -> None:
    params = [torch.ones(2, dtype=torch.float64)]
    optimizer = Adam(params, lr=0.1)
    gradient = [torch.tensor([0.5, 0.0], dtype=torch.float64)]
    torch_step(optimizer, params, gradient, 0.0)
    rules, state = read_optimizer(optimizer, params)
    (found,) = preconditioner(rules, params, gradient, state)([torch.ones(2, dtype=torch.float64)])
    assert found[0] != 0
    assert found[1] == 0  # not NaN, and not 0.1 / 1e-8 either


def test_an_entry_whose_gradient_is_zero_for_once_moves_on() -> None:
    params = draw(0)
    optimizer = OPTIMIZERS["adam"](params)
    torch_step(optimizer, params, draw(1), 0.0)
    rules, state = read_optimizer(optimizer, params)
    rules = [replace(rule, weight_decay=0.0) for rule in rules]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    grads = [g.clone() for g in draw(2)]
    grads[0][1] = 0
    found, _ = update(rules, [p.clone() for p in params], grads, state)
    torch_step(optimizer, params, grads, 0.0)
    assert torch.allclose(found[0], params[0], rtol=1e-12, atol=0)


def test_what_was_read_of_the_state_is_a_copy() -> None:
    params = draw(0)
    optimizer = OPTIMIZERS["adam"](params)
    torch_step(optimizer, params, draw(1), 0.0)
    _, state = read_optimizer(optimizer, params)
    before = [{name: s.clone() for name, s in one.items()} for one in state]
    torch_step(optimizer, params, draw(2), 0.0)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(state, before, strict=True) for n in a)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_is_left_as_torch_leaves_it(name: str, clip: float) -> None:
    params, v = draw(0), draw(3)
    optimizer = OPTIMIZERS[name](params)
    torch_step(optimizer, params, draw(1), 0.0)
    rules, state = read_optimizer(optimizer, params)
    rules[0] = replace(rules[0], kind="skip")
    grads = [torch.zeros(3, dtype=torch.float64), draw(2)[1]]
    before = [p.clone() for p in params]
    found, after = update(rules, before, grads, state, clip)
    params[0].grad, params[1].grad = None, grads[1].clone()
    if clip:
        nn.utils.clip_grad_norm_(params, clip)
    optimizer.step()
    _, expected = read_optimizer(optimizer, params)
    assert torch.equal(found[0], before[0])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(found, params, strict=True))
    for mine, torchs in zip(after, expected, strict=True):
        assert all(torch.allclose(mine[k], torchs[k], rtol=1e-12, atol=0) for k in mine)
    # It has no say in the step's derivative, and nothing of the others' goes through it.
    q = preconditioner(rules, before, grads, state, clip)(v)
    alone = preconditioner(rules[1:], before[1:], grads[1:], state[1:], clip)(v[1:])
    assert torch.equal(q[0], torch.zeros_like(q[0]))
    assert torch.allclose(q[1], alone[0], rtol=1e-12, atol=0)
    nothing = [replace(rule, kind="skip") for rule in rules]
    assert not any(x.any() for x in preconditioner(nothing, before, grads, state, clip)(v))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (torch.optim.RMSprop, "lower optimizer is RMSprop"),
        (lambda ps: Adam(ps, amsgrad=True), "amsgrad=True"),
        (lambda ps: SGD(ps, maximize=True), "maximize=True"),
        (lambda ps: SGD(ps[:1]), r"does not hold lower parameter 1, of shape \(4,\)"),
    ],
)
def test_what_cannot_be_differentiated_is_refused(
    build: Callable[[list[Tensor]], Optimizer], message: str
) -> None:
    params = draw(0)
    with pytest.raises(UserError, match=message):
        read_optimizer(build(params), params)


DECAYING: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda ps: SGD(ps, lr=0.2, weight_decay=0.3),
    "adam": lambda ps: Adam(ps, lr=0.2, weight_decay=0.3),
    "adamw": lambda ps: AdamW(ps, lr=0.2, weight_decay=0.3, eps=0.1, betas=(0.9, 1 - 1e-9)),
}


@pytest.mark.parametrize("name", DECAYING)
def test_the_damping_of_a_decay_is_where_the_steps_end(name: str) -> None:
    """torch's own step does not move φ where ∇L + ρφ = 0, with ρ this damping."""
    params = draw(0)
    optimizer = DECAYING[name](params)
    taken = 10
    if name != "sgd":
        for p in params:
            optimizer.state[p] = {
                "step": torch.tensor(float(taken)),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.full_like(p, 0.04 * (1e-9 * taken)),  # 0.04 when corrected
            }
    damping = damping_of_decay(optimizer, params)
    assert damping == pytest.approx(0.3 * (0.2 + 0.1) if name == "adamw" else 0.3, rel=1e-6)
    if name == "adamw":
        for p in params:
            optimizer.state[p]["exp_avg"] = -damping * p * (1 - 0.9**taken)
            optimizer.state[p]["exp_avg_sq"] *= (taken + 1) / taken  # the next step's is the same
            p.grad = -damping * p
            optimizer.state[p]["exp_avg_sq"] -= 1e-9 * p.grad**2
    before = [p.clone() for p in params]
    for p in params:
        p.grad = -damping * p
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        assert torch.allclose(p, old, rtol=1e-6, atol=0)


def test_no_decay_is_no_damping() -> None:
    params = draw(0)
    assert damping_of_decay(AdamW(params, weight_decay=0.0), params) == 0
    groups = [{"params": params[:1], "weight_decay": 0.7}, {"params": params[1:]}]
    assert damping_of_decay(SGD(groups, lr=0.1), params) == pytest.approx(0.7 * 3 / 7)
