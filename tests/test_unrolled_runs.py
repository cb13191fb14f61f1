"""Unrolled hypergradients of multilevel programs, held against central differences of real runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad

from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.errors import UserError
from dreamprm.problems.base import Problem
from dreamprm.problems.config import ProblemConfig
from tests.test_as_betty import Program, Upper

unrolled = partial(ProblemConfig, "unrolled")
every = partial(ProblemConfig, "identity")


def apart(above: tuple[str, ...] = ("middle",)) -> Program:
    """Two levels, and below or beside them a problem that is read and knows of no other."""
    program = Program("top middle top")
    program.u2l["bottom"], program.l2u["bottom"] = [], list(above)
    program.reads = {"bottom": [], "middle": ["bottom", "top"], "top": ["middle"]}
    return program


class Drifting(Upper):
    """Moves at every step, whatever the others do."""

    def optimizer_step(self) -> None:
        self().data += 0.2


def build(program: Program, configs: dict[str, ProblemConfig], drifting: str | None) -> Engine:
    engine = program.build(configs, lr=0.2)
    if drifting:
        getattr(engine, drifting).__class__ = Drifting
    return engine


def until(engine: Engine, steps: int) -> Engine:
    while engine.global_step < steps:
        engine.global_step += 1
        engine.train_step()
    return engine


TWO_UPPERS = Program("upper lower upper", "other lower other")
RUNS: dict[str, tuple[Program, dict[str, ProblemConfig], str, int, int, str | None]] = {
    # Of which problem, the leaves' steps at which its parameters are shifted and its loss is seen.
    "bottom apart": (apart(), {"bottom": every(2), "middle": unrolled(3)}, "top", 6, 12, None),
    "beside": (apart(()), {"middle": unrolled(3)}, "top", 3, 6, None),
    "three levels": (
        Program("top middle bottom top", "top bottom top"),
        {"bottom": unrolled(2), "middle": unrolled(3)},
        *("top", 6, 12, None),
    ),
    "four levels": (
        Program("top third second first top", "top third first top", "top first top"),
        {"first": unrolled(2), "second": unrolled(2), "third": unrolled(2)},
        *("top", 8, 16, None),
    ),
    "two ways": (
        Program("top left bottom top", "top right bottom top"),
        {"bottom": unrolled(2), "left": unrolled(1), "right": unrolled(3)},
        *("top", 6, 12, None),
    ),
    "two uppers, who steps first": (TWO_UPPERS, {"lower": unrolled(4)}, "upper", 4, 8, None),
    "two uppers, who steps second": (TWO_UPPERS, {"lower": unrolled(4)}, "other", 4, 8, None),
    "two uppers of their own pace": (
        Program("quick lower quick", "upper lower upper", "upper idle upper"),
        {"lower": unrolled(2), "idle": unrolled(6)},
        *("upper", 6, 12, "quick"),
    ),
    "the last steps alone": (
        Program("upper lower upper"),
        {"lower": unrolled(4, options={"iterations": 3})},
        *("upper", 5, 8, None),
    ),
    "warm-up": (
        Program("upper lower upper"),
        {"lower": unrolled(3, warmup_steps=7)},
        *("upper", 6, 9, None),
    ),
    "warm-up of the middle": (
        Program("top middle bottom top"),
        {"bottom": unrolled(2), "middle": unrolled(2, warmup_steps=4)},
        *("top", 8, 12, None),
    ),
}


@pytest.mark.parametrize(
    ("name", "product"),
    [
        *((name, "double_backward") for name in RUNS),
        *(("three levels", product) for product in ("forward", "finite_difference")),
    ],
)
def test_unrolling_is_the_derivative_of_the_run(name: str, product: str) -> None:
    program, configs, upper, start, end, drifting = RUNS[name]
    configs = {
        n: replace(c, type=c.type.replace("unrolled", f"unrolled+{product}"))
        for n, c in configs.items()
    }
    before = copy.deepcopy(until(build(program, configs, drifting), start).state_dict())

    def run(shift: Tensor) -> tuple[float, Tensor]:
        engine = build(program, configs, drifting)
        engine.load_state_dict(copy.deepcopy(before))
        problem: Any = getattr(engine, upper)
        problem().data += shift
        losses: list[float] = []
        problem.log = lambda stats, step: losses.append(stats["loss"])
        until(engine, end)
        (loss,) = losses
        return loss, problem.seen[-1][0]

    step = 1e-5
    _, found = run(torch.zeros(3))
    expected = [
        (run(shift)[0] - run(-shift)[0]) / (2 * step)
        for shift in step * torch.eye(3, dtype=torch.float64)
    ]
    # Differences of the run: rounding 1e-16 / 1e-5, truncation of the order of step² = 1e-10.
    error = (found - torch.tensor(expected, dtype=torch.float64)).norm()
    assert error < 1e-8 * found.norm(), error / found.norm()


def test_below_unrolled_steps_an_implicit_method_gets_the_sum_over_their_moments() -> None:
    """The middle's steps at what each saw below, which answers to the top by identity."""
    program = RUNS["three levels"][0]
    engine = build(program, {"bottom": ProblemConfig("t1t2", 2), "middle": unrolled(3)}, None)
    middle, seen = engine.middle().detach().clone(), []
    for step in (2, 4, 6):
        until(engine, step)
        seen.append(engine.bottom().detach().clone())
    ((found, at),) = engine.top.seen

    def top(at: dict[str, Tensor]) -> Tensor:
        """M, where all that the middle saw below is shifted by as much as the end is."""
        shift, own = at["bottom"] - at["bottom"].detach(), middle
        for below in seen:
            gradient = grad(
                lambda own, below=below: program.loss(
                    "middle", {"middle": own, "bottom": below + shift}
                )
            )
            own = own - 0.2 * gradient(own)
        return program.loss("top", at | {"middle": own})

    at = {name: vector.requires_grad_() for name, vector in at.items()}
    direct, v = torch.autograd.grad(top(at), (at["top"], at["bottom"]))
    (gradient,) = torch.autograd.grad(program.loss("bottom", at), at["bottom"], create_graph=True)
    (through,) = torch.autograd.grad(gradient, at["top"], v)
    assert (found - (direct - through)).norm() < 1e-12 * found.norm()


@pytest.mark.parametrize("name", ["three levels", "two uppers of their own pace", "warm-up"])
def test_a_run_of_several_levels_resumes_exactly_at_every_step(name: str) -> None:
    program, configs, upper, _, end, drifting = RUNS[name]
    whole = until(build(program, configs, drifting), end)
    for cut in range(1, end):
        engine = build(program, configs, drifting)
        engine.load_state_dict(until(build(program, configs, drifting), cut).state_dict())
        until(engine, end)
        for a, b in zip(whole.problems, engine.problems, strict=True):
            assert torch.equal(a(), b()), cut  # type: ignore[operator]
        assert torch.equal(getattr(whole, upper).seen[-1][0], getattr(engine, upper).seen[-1][0])


KEPT: dict[str, tuple[Program, dict[str, ProblemConfig], dict[str, int]]] = {
    "warm-up": (
        Program("upper lower upper"),
        {"lower": unrolled(3, warmup_steps=20)},
        {"lower": 3},
    ),
    "warm-up, the last ones": (
        Program("upper lower upper"),
        {"lower": unrolled(3, warmup_steps=20, options={"iterations": 2})},
        {"lower": 2},
    ),
    "warm-up of the middle": (
        Program("top middle bottom top"),
        {"bottom": unrolled(2), "middle": unrolled(2, warmup_steps=10)},
        {"bottom": 4, "middle": 2},
    ),
    "warm-up beside": (
        Program("upper lower upper", "upper idle upper"),
        {"lower": unrolled(2), "idle": unrolled(2, warmup_steps=20)},
        {"lower": 2, "idle": 2},
    ),
    "one of two uppers waits": (
        Program("quick lower quick", "upper lower upper", "upper idle upper"),
        {"lower": unrolled(2), "idle": unrolled(2, warmup_steps=20)},
        {"lower": 2, "idle": 2},
    ),
    "seen through by nobody": (
        apart(),
        {"bottom": unrolled(2), "middle": unrolled(2)},
        {"bottom": 0},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_no_more_steps_are_kept_than_will_be_used(name: str) -> None:
    program, configs, expected = KEPT[name]
    engine = build(program, configs, None)
    most = dict.fromkeys(expected, 0)
    for step in range(1, 31):
        until(engine, step)
        for each in expected:
            most[each] = max(most[each], len(getattr(engine, each)._history.recorded))
    assert most == expected


def test_what_others_hold_is_copied_once_as_long_as_it_stays() -> None:
    engine = until(build(TWO_UPPERS, {"lower": unrolled(4)}, None), 3)
    recorded = [each.seen for each in engine.lower._history.recorded]
    assert len(recorded) == 3
    for name in ("upper", "other"):
        assert len({id(tensor) for seen in recorded for tensor in seen[name].values()}) == 1


class Batched(Problem):
    """Draws the same random batch whenever it steps."""

    def get_batch(self) -> Tensor:
        return torch.randn(5, 3, generator=torch.Generator().manual_seed(self.count))


class Bottom(Batched):
    def training_step(self, batch: Tensor) -> Tensor:
        return self.module(batch).square().mean()


class Middle(Batched):
    def training_step(self, batch: Tensor) -> Tensor:
        return (self.module(self.bottom.module(batch)) - self.top.module.weight).square().mean()


class Top(Batched):
    def training_step(self, batch: Tensor) -> Tensor:
        return (self.middle.module(batch) - 1).square().mean()


@pytest.mark.parametrize("method", ["t1t2", "darts", "cg", "f2sa", "unrolled"])
def test_hypergradients_do_not_move_the_buffers_of_any_problem(method: str) -> None:
    bottom, middle, top = (
        problem(
            problem.__name__.lower(),
            ProblemConfig(type=method, unroll_steps=2),
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        )
        for problem, module in (
            (Bottom, nn.BatchNorm1d(3)),
            (Middle, nn.Linear(3, 1)),
            (Top, nn.Linear(1, 1, bias=False)),
        )
    )
    levels = {"u2l": {top: [middle]}, "l2u": {bottom: [middle], middle: [top]}}
    Engine([bottom, middle, top], EngineConfig(strategy="cpu", train_iters=8), levels).run()
    assert top.count == 2
    assert bottom.module.num_batches_tracked == bottom.count + middle.count


def other_rate(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A subclass whose steps are a little longer than torch's."""

    class Longer(type(optimizer)):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
            super().step(closure)
            after = [p for group in self.param_groups for p in group["params"]]
            for p, q in zip(after, before, strict=True):
                p.data += 0.01 * (p.data - q)

    optimizer.__class__ = Longer
    return optimizer


def test_steps_of_an_optimizer_that_torch_does_not_have_are_refused() -> None:
    engine = build(Program("upper lower upper"), {"lower": unrolled(3)}, None)
    other_rate(engine.lower.optimizer)
    with pytest.raises(
        UserError, match=r"recorded lower step 3 leads parameter 0, of shape \(3,\)"
    ):
        until(engine, 3)


def test_parameters_that_change_between_recorded_steps_are_refused() -> None:
    engine = build(Program("upper lower upper"), {"lower": unrolled(3)}, None)
    until(engine, 2)
    engine.lower().data *= 0.5
    with pytest.raises(UserError, match="recorded lower step 2 leads parameter 0"):
        until(engine, 3)
