"""torch's checkpoints in anybody's modules change no hypergradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from dreamprm.errors import UserError
from dreamprm.hypergradients import hypergradient
from dreamprm.hypergradients.checkpointing import recomputing_alike
from tests.toy import toy

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("t1t2", {}),
    ("darts", {}),
    ("neumann+forward", {"iterations": 2}),
    ("neumann+double_backward", {"iterations": 2}),
    ("neumann+finite_difference", {"iterations": 2}),
    ("sama+forward", {}),
    ("unrolled+double_backward", {"iterations": 2}),
    ("unrolled+forward", {"iterations": 2}),
    ("f2sa", {"iterations": 2}),
]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Network(nn.Module):
    """A module call, a function with a parameter of its own and a checkpoint within another one.

    Args:
        reentrant: of the checkpoints; None for the same network without them.
    """

    def __init__(self, reentrant: bool | None, width: int = 4) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.BatchNorm1d(width))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.second, self.drop = nn.Linear(width, width), nn.Dropout(0.2)
        self.last = nn.Linear(width, 1)

    def part(self, function: Any, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return function(x)
        found = checkpoint(function, x, use_reentrant=self.reentrant)
        assert isinstance(found, Tensor)
        return found

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(self.first, x)
        x = self.part(lambda x: self.part(self.second, x * self.scale).tanh() + self.drop(x), x)
        return self.last(x)


def answer(method: str, options: dict[str, Any], reentrant: bool | None) -> Tensor:
    torch.manual_seed(0)
    network = Network(reentrant)
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    x, y, x_meta = torch.randn(4, 6, 3), torch.randn(4, 6), torch.randn(6, 3)
    # Not where the module is: an answer at its own parameters would be another.
    phi = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    own = dict(network.named_parameters())

    def read(phi: dict[str, Tensor], x: Tensor) -> Tensor:
        lent = {name: buffer.clone() for name, buffer in network.named_buffers()}
        return torch.func.functional_call(network, phi | lent, (x,)).squeeze(-1)

    def lower(phi: dict[str, Tensor], alpha: list[Tensor]) -> Tensor:
        losses = [(read(phi, rows) - goal).square().mean() for rows, goal in zip(x, y, strict=True)]
        # And at other parameters within the same loss.
        half = read({name: p / 2 for name, p in phi.items()}, x[0]).square().mean()
        return softplus(alpha[0]) @ torch.stack([*losses, half])

    def upper(phi: dict[str, Tensor], alpha: list[Tensor]) -> Tensor:
        return (read(phi, x_meta) - 1).square().mean()

    if method.startswith(("unrolled", "sama")):
        options = options | {"optimizer": torch.optim.SGD(list(phi.values()), lr=0.1)}
    (found,) = hypergradient(method, upper, lower, phi, [torch.linspace(-1, 1, 5)], **options)
    assert all(p is own[name] for name, p in network.named_parameters())
    assert all(torch.equal(buffer, statistics[n]) for n, buffer in network.named_buffers())
    return found


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_hypergradients_of_functions(method: str, options: dict[str, Any]) -> None:
    expected = answer(method, options, None)
    found = answer(method, options, False)
    # The same operations: nothing but the order of sums may differ.
    assert (found - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_hypergradients_of_runs(method: str, options: dict[str, Any]) -> None:
    def weights(reentrant: bool | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        network = Network(reentrant)
        network.first = network.first[:2]  # a batch norm's statistics see every recomputation
        engine = toy(6, method, module=network, problem={"options": options})
        for problem in (engine.regression, engine.upper):
            for each in problem.train_data_loader:
                each.items = [{k: _double(v) for k, v in row.items()} for row in each.items]
        engine.run()
        lower = torch.cat([p.detach().reshape(-1) for p in engine.regression.module.parameters()])
        return torch.cat([p.detach() for p in engine.upper.module.parameters()]), lower

    expected, found = weights(None), weights(False)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-9 * other.norm()


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


@pytest.mark.parametrize("method", ["t1t2", "darts", "neumann"])
def test_a_reentrant_checkpoint_is_refused(method: str) -> None:
    with pytest.raises(UserError, match=r"reentrant checkpoint.*use_reentrant=False"):
        answer(method, {}, True)


def test_what_is_in_place_comes_back_when_recomputing_fails() -> None:
    linear, calls = nn.Linear(3, 1), []

    def once(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) > 1:
            raise ZeroDivisionError
        return linear(x).exp()

    lent = {name: torch.zeros_like(p).requires_grad_() for name, p in linear.named_parameters()}
    own = dict(linear.named_parameters())

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Any:
            return checkpoint(once, x, use_reentrant=False).sum()  # type: ignore[union-attr]

    outer = {f"linear.{name}": p for name, p in lent.items()}
    loss = recomputing_alike(
        lambda: torch.func.functional_call(Outer(), outer, (torch.ones(2, 3),))
    )()
    with pytest.raises(ZeroDivisionError):
        torch.autograd.grad(loss, list(lent.values()))
    assert all(p is own[name] for name, p in linear.named_parameters())


def test_training_through_a_reentrant_checkpoint_is_refused() -> None:
    """Before any hypergradient: torch has no gradient with respect to chosen parameters there."""
    with pytest.raises(UserError, match=r"reentrant checkpoint.*use_reentrant=False"):
        toy(method="t1t2", module=Network(True).double()).run()
