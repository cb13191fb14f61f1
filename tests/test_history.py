"""What is kept of lower steps: hypergradients of real runs, and resuming anywhere between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.hypergradients.unrolled import ReplayWarning
from tests.toy import Regression, Weighting, toy


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Keeping(Weighting):
    """Keeps its last gradient; its loss depends on α directly too."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return super().training_step(batch) + 0.1 * (self.module.alpha - 0.3).square().sum()

    def grad_callback(self) -> None:
        self.kept = self.module.alpha.grad.clone()


class Annealed(Regression):
    """Its loss depends on how many steps it and the upper problem have taken."""

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        factor = 1 + 0.1 * self.count + 0.3 * self.weighting.count
        return super().sample_losses(batch) * factor


class Counting(nn.Linear):
    """Its answer depends on a buffer that every training evaluation changes."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x) * (1 + 0.1 * self.calls)


class WithSpare(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 1)
        self.spare = nn.Linear(3, 1)


class Alternating(Regression):
    """Every other step leaves parameters without a gradient."""

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        extra = self.module.spare(batch["x"]).squeeze(-1) if self.count % 2 else 0
        return (self(batch["x"]).squeeze(-1) + extra - batch["y"]).square()


class SeeingBoth(Keeping):
    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        spare = self.regression.module.spare(batch["x"])
        return super().training_step(batch) + (spare - 1).square().mean()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def build(
    steps: int, module: Callable[[], nn.Module] = network, **options: Any
) -> ReweightingEngine:
    torch.manual_seed(0)
    return toy(steps=steps, module=module(), **{"upper": Keeping} | options)


RUNS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "nesterov, clipped, decaying": {
        "optimizer": lambda m: torch.optim.SGD(
            m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1
        ),
        "scheduler": lambda o: LambdaLR(o, lambda t: 1 / (1 + 0.3 * t)),
        "problem": {"gradient_clipping": 0.5},
    },
    "accumulated": {"problem": {"gradient_accumulation": 2, "gradient_clipping": 0.5}},
    "a loss that counts": {"lower": Annealed},
    "a loss with memory": {"module": Counting},
    "parameters that are not always used": {
        "module": WithSpare,
        "lower": Alternating,
        "upper": SeeingBoth,
    },
    "warming up": {"scheduler": lambda o: LinearLR(o, start_factor=1e-3, total_iters=4)},
}


@pytest.mark.filterwarnings("error::dreamprm.hypergradients.unrolled.ReplayWarning")
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("product", ["double_backward", "forward", "finite_difference"])
def test_unrolling_is_the_derivative_of_the_run_itself(name: str, product: str) -> None:
    """Held against runs from α a little higher and lower: optimizer, masks, batches and all."""
    run = RUNS[name]
    problem = {"unroll_steps": 3} | run.get("problem", {})
    options = run | {"method": f"unrolled+{product}", "problem": problem}
    engine = build(3, **options)
    engine.run()
    before = copy.deepcopy(engine.state_dict())

    def second_cycle(shift: Tensor) -> ReweightingEngine:
        engine = build(6, **options)
        engine.load_state_dict(copy.deepcopy(before))
        engine.upper.module.alpha.data += shift
        losses: list[float] = []
        log = engine.upper.log
        engine.upper.log = lambda *a: (log(*a), losses.append(engine.upper.stats["loss"]))  # type: ignore
        engine.run()
        (engine.loss,) = losses
        return engine

    step = 1e-5
    found = second_cycle(torch.zeros(2)).upper.kept
    expected = [
        (second_cycle(shift).loss - second_cycle(-shift).loss) / (2 * step)
        for shift in step * torch.eye(2)
    ]
    # Differences of the run: rounding 1e-16 / 1e-5, truncation of the order of step² = 1e-10.
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-7, atol=1e-9)


def test_unrolling_is_the_derivative_of_a_run_that_rolls_back() -> None:
    """The step that is taken again after an upper step already sees that step's α."""

    class Shifted(Keeping):
        shift = torch.zeros(2)

        def param_callback(self) -> None:
            if self.count == 1:
                self.module.alpha.data += self.shift

        def log(self, stats: dict[str, Any], global_step: int | None) -> None:
            super().log(stats, global_step)
            self.loss = stats["loss"]

    def run(shift: Tensor) -> Shifted:
        torch.manual_seed(0)
        engine = toy(
            *(6, "unrolled"),
            module=network(),
            upper=Shifted,
            problem={"unroll_steps": 3},
            roll_back=True,
        )
        engine.upper.shift = shift
        engine.run()
        assert engine.upper.count == 2
        return engine.upper

    step = 1e-5
    found = run(torch.zeros(2)).kept
    expected = [(run(d).loss - run(-d).loss) / (2 * step) for d in step * torch.eye(2)]
    # Differences of the run: rounding 1e-16 / 1e-5, truncation of the order of step² = 1e-10.
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-7, atol=1e-9)


def test_a_loss_that_remembers_on_its_own_is_warned_of() -> None:
    class Remembering(Regression):
        evaluations = 0

        def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
            self.evaluations += 1
            return super().sample_losses(batch) * (1 + 0.1 * self.evaluations)

    with pytest.warns(ReplayWarning, match="recorded lower step 3 had a gradient of length"):
        build(3, method="unrolled", lower=Remembering, problem={"unroll_steps": 3}).run()


CUTS: dict[str, dict[str, Any]] = {
    "unroll 4": {"problem": {"unroll_steps": 4}},
    "roll back": {"problem": {"unroll_steps": 4}, "roll_back": True},
    "accumulated": {
        "problem": {"unroll_steps": 2, "gradient_accumulation": 2},
        "upper_problem": {"gradient_accumulation": 2},
    },
    "unrolled": {"method": "unrolled", "problem": {"unroll_steps": 4}},
    "sama": {"method": "sama", "problem": {"unroll_steps": 4}},
}


@pytest.mark.parametrize("name", CUTS)
def test_a_run_resumes_exactly_at_every_step(name: str) -> None:
    whole = build(12, **CUTS[name])
    whole.run()
    for cut in range(1, 12):
        first, second = build(cut, **CUTS[name]), build(12, **CUTS[name])
        first.run()
        second.load_state_dict(first.state_dict())
        second.run()
        for a, b in zip(whole.problems, second.problems, strict=True):
            for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True):
                assert torch.equal(p, q), cut


def test_sama_leaves_out_parameters_without_a_gradient() -> None:
    def kept(module: Callable[[], nn.Module]) -> Tensor:
        torch.manual_seed(0)
        engine = toy(steps=2, method="sama", module=module(), upper=Keeping)
        engine.run()
        return engine.upper.kept

    torch.manual_seed(0)
    assert torch.equal(kept(WithSpare), kept(lambda: nn.Linear(3, 1)))
