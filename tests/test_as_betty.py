"""What betty's own published tests check, with our Problem and Engine in the places of theirs.

Those (github.com/leopard-ai/betty, ``test/``) look at the graph of two levels, at step counts, and
at whether learnt penalties help a logistic regression. Here the graph has more shapes, and upper
gradients are held against float64 answers that use nothing of this project.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from betty.envs import Env
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.errors import UserError
from dreamprm.problems.base import Problem
from dreamprm.problems.config import ProblemConfig


class Node(Problem):
    """A problem over one vector, built by betty's hooks."""

    program: Program
    lr: float

    def configure_module(self) -> nn.Module:
        return nn.ParameterList([self.program.start(self.name)])

    def configure_optimizer(self) -> torch.optim.SGD:
        return torch.optim.SGD(self.module.parameters(), self.lr)

    def forward(self) -> Tensor:
        return self.module[0]

    def get_batch(self) -> Any:
        return None

    def vectors(self) -> dict[str, Tensor]:
        return {n: self() if n == self.name else getattr(self, n)() for n in self.program.reads}

    def training_step(self, batch: Any) -> Tensor:
        return self.program.loss(self.name, self.vectors())


class Upper(Node):
    """Keeps every gradient, and where it was taken."""

    def grad_callback(self) -> None:
        at = {name: vector.detach().clone() for name, vector in self.vectors().items()}
        self.seen = [*getattr(self, "seen", []), (self().grad.clone(), at)]


class Program:
    """A multilevel program over vectors; its paths lead from upper problems round to themselves.

    ``reads`` says of whose vectors, besides its own, a problem's loss is a function; lowest first.
    """

    kinds: tuple[type[Node], type[Node]] = Node, Upper

    def __init__(self, *paths: str) -> None:
        self.paths = [path.split() for path in paths]
        depths = [(i, name) for path in self.paths for i, name in enumerate(path[:-1])]
        names = list(dict.fromkeys(name for _, name in sorted(depths, reverse=True)))
        u2l = {(path[0], path[-2]) for path in self.paths}
        l2u = {(low, up) for path in self.paths for up, low in itertools.pairwise(path[:-1])}
        self.u2l, self.l2u, self.reads = (
            {a: [b for b in names if (a, b) in edges] for a in names}
            for edges in (u2l, l2u, {(b, a) for a, b in u2l | l2u})
        )

    def build(self, configs: dict[str, ProblemConfig], lr: float = 0.05, **engine: Any) -> Engine:
        nodes: dict[str, Node] = {}
        for name in self.reads:
            node = nodes[name] = self.kinds[bool(self.u2l[name])](name, configs.get(name))
            node.program, node.lr = self, lr
        dependencies = {
            kind: {nodes[a]: [nodes[b] for b in bs] for a, bs in getattr(self, kind).items()}
            for kind in ("u2l", "l2u")
        }
        return Engine(list(nodes.values()), EngineConfig(strategy="cpu", **engine), dependencies)

    def start(self, name: str) -> Tensor:
        return matrix(name, "start")[0].clone()

    def loss(self, name: str, at: dict[str, Tensor]) -> Tensor:
        """Convex in its own vector; all its second derivatives change from point to point."""
        own, others = at[name], self.reads[name]
        z = sum((matrix(name, n) @ at[n] for n in others), matrix(name) @ own + matrix(name)[:, 0])
        ridge = sum(1 + at[n].square().mean() for n in others) * own.square().sum()
        return (softplus(2 * z) - z).sum() + ridge

    def solved(self, uppers: dict[str, Tensor]) -> dict[str, Tensor]:
        """All vectors, the lower ones at their minima: a differentiable function of the uppers."""
        at = dict(uppers)
        for name in (n for n in self.reads if n not in uppers):
            loss = partial(lambda name, own: self.loss(name, at | {name: own}), name)
            at[name] = torch.zeros(3, dtype=torch.float64)
            for _ in range(12):
                step = torch.linalg.solve(hessian(loss)(at[name]), grad(loss)(at[name]))
                at[name] = at[name] - step
            assert step.norm() < 1e-14
        return at


def matrix(*key: str) -> Tensor:
    """A random one, the same for the same key."""
    return torch.from_numpy(_values(*key))


@cache
def _values(*key: str) -> Any:
    generator = np.random.default_rng(zlib.crc32("/".join(key).encode()))
    return generator.standard_normal((5, 3)) / 2


PROGRAMS = {
    "two levels": Program("upper lower upper"),
    "three levels": Program("top middle bottom top", "top bottom top"),
    "two lowers": Program("upper left upper", "upper right upper"),
    "two uppers": Program("first lower first", "second lower second"),
    "two ways": Program("top left bottom top", "top right bottom top"),
}
every_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
every = partial(ProblemConfig, "identity")


@every_program
def test_the_graph_is_read_as_it_was_given(program: Program) -> None:
    engine = program.build({})
    paths = [[node.name for node in path] for p in engine.problems for path in p.paths]
    assert sorted(paths) == sorted(program.paths)
    leaves = [p for p in engine.problems if not any(p.name in a for a in program.l2u.values())]
    assert engine.leaves == leaves == [p for p in engine.problems if p.leaf]
    for problem in engine.problems:
        assert [p.name for p in problem.parents] == program.l2u[problem.name]
        assert problem.parents == [p for p in engine.problems if problem in p.children]
        others = [p for p in engine.problems if p is not problem]
        assert all(getattr(each, problem.name) is problem for each in [engine, *others])


def test_loaders_and_schedulers_come_from_hooks() -> None:
    class Sum(Node):
        program, lr, get_batch = PROGRAMS["two levels"], 1.0, Problem.get_batch

        def configure_train_data_loader(self) -> list[float]:
            return [1.0, 2.0]

        def configure_scheduler(self) -> Any:
            return torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)

        def training_step(self, batch: float) -> Tensor:
            return batch * self().sum()

    problem = Sum("sum")
    Engine([problem], EngineConfig(strategy="cpu", train_iters=4), {"u2l": {}, "l2u": {}}).run()
    # Rates 1, ½, ¼, ⅛ on batches 1, 2, 1, 2; float64 rounds once a step.
    assert torch.allclose(problem(), problem.program.start("sum") - 2.5, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "configs", "expected"),
    [
        ("two levels", {"lower": every(10)}, {"upper": 10}),
        ("two levels", {"lower": every(5, warmup_steps=19)}, {"upper": 20}),
        ("two levels", {"lower": every(5, gradient_accumulation=2)}, {"upper": 5}),
        ("two uppers", {"lower": every(8)}, {"first": 8, "second": 8}),
        # An upper problem waits for all its lower ones; each level counts the steps below it.
        ("two lowers", {"left": every(4), "right": every(6)}, {"upper": 6}),
        ("three levels", {"bottom": every(2), "middle": every(3)}, {"middle": 2, "top": 6}),
    ],
)
def test_upper_problems_step_when_their_lower_ones_are_through(
    shape: str, configs: dict[str, ProblemConfig], expected: dict[str, int]
) -> None:
    engine = PROGRAMS[shape].build(configs)
    found: dict[str, list[int]] = {p.name: [] for p in engine.problems}
    for step in range(1, 21):
        engine.train_step()
        for p in engine.problems:
            found[p.name] += [step] * (p.count - len(found[p.name]))
    intervals = dict.fromkeys(found, 1) | expected
    assert found == {name: list(range(i, 21, i)) for name, i in intervals.items()}


@every_program
@pytest.mark.parametrize("method", ["cg", "cg+forward"])
def test_upper_gradients_are_those_of_the_nested_minima(program: Program, method: str) -> None:
    uppers = {n: program.start(n).requires_grad_() for n in program.reads if program.u2l[n]}
    at = program.solved(uppers)
    config = ProblemConfig(type=method, options={"iterations": 3})
    # Nothing moves, so that a second upper problem sees the first one where it was.
    engine = program.build(dict.fromkeys(at.keys() - uppers, config), lr=0.0, train_iters=1)
    for name, vector in at.items():
        getattr(engine, name)().data.copy_(vector.detach())
    engine.run()
    for name, value in uppers.items():
        (expected,) = torch.autograd.grad(program.loss(name, at), value, retain_graph=True)
        ((found, _),) = getattr(engine, name).seen
        # Conjugate gradient stops at a residual of 1e-10, in at most two solves one upon another.
        assert (found - expected).norm() < 1e-9 * expected.norm()


EYE = torch.eye(3, dtype=torch.float64)
INVERSES: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    **dict.fromkeys(("identity", "t1t2", "darts"), ({}, lambda h: EYE)),
    "sama": ({}, lambda h: 0.05 * EYE),
    "neumann": ({"iterations": 1, "alpha": 0.9}, lambda h: 0.9 * (2 * EYE - 0.9 * h)),
    "cg": ({"iterations": 3}, torch.linalg.inv),
    "nystrom": ({"rank": 3, "damping": 0.1}, lambda h: torch.linalg.inv(h + 0.1 * EYE)),
}


@pytest.mark.parametrize("method", INVERSES)
def test_every_method_works_through_three_levels(method: str) -> None:
    program = PROGRAMS["three levels"]
    options, inverse = INVERSES[method]
    config = ProblemConfig(type=method, options=options, unroll_steps=2)
    engine = program.build({"bottom": config, "middle": config}, train_iters=8)
    engine.run()
    for found, at in engine.top.seen:

        def through(lower: str, above: str, v: Tensor, at: dict[str, Tensor] = at) -> Tensor:
            """−(∂²L/∂α∂φ)ᵀ q, with the method's own q for H⁻¹ v."""
            gradient = grad(lambda p, a: program.loss(lower, at | {lower: p, above: a}))
            h, cross = (jacrev(gradient, i)(at[lower], at[above]) for i in (0, 1))
            return -cross.T @ inverse(h) @ v

        direct = grad(lambda at: program.loss("top", at))(at)
        v = direct["bottom"] + through("middle", "bottom", direct["middle"])
        expected = direct["top"] + through("bottom", "top", v)
        # Differences in float64 are right to u^⅔ = 2e-11 of the third derivatives, here about 1.
        assert (found - expected).norm() < 1e-8 * expected.norm()


@pytest.mark.parametrize("name", ["bottom", "middle"])
def test_between_levels_there_is_no_upper_loss_to_penalise(name: str) -> None:
    """What comes through a level is no gradient of a loss at hand."""
    program = PROGRAMS["three levels"]
    configs = {"bottom": every(), "middle": every()} | {name: ProblemConfig("f2sa")}
    with pytest.raises(UserError, match="f2sa needs the upper loss, which is not at hand"):
        program.build(configs, train_iters=1).run()


@every_program
def test_half_a_run_and_the_rest_are_a_whole_run(program: Program) -> None:
    configs = dict.fromkeys(program.reads, every(3))
    whole, first, second = (program.build(configs, train_iters=steps) for steps in (20, 4, 20))
    whole.run()
    first.run()
    second.load_state_dict(first.state_dict())
    second.run()
    assert all(torch.equal(getattr(whole, n)(), getattr(second, n)()) for n in program.reads)


@pytest.mark.parametrize("cut", [4, 5, 7])
def test_a_resumed_run_knows_which_lower_problems_are_through(cut: int) -> None:
    """Between steps 4 and 6 the upper problem waits for the right one alone."""
    program, configs = PROGRAMS["two lowers"], {"left": every(4), "right": every(6)}
    whole, first, second = (program.build(configs, train_iters=n) for n in (12, cut, 12))
    whole.run()
    first.run()
    second.load_state_dict(first.state_dict())
    second.run()
    assert (whole.upper.count, second.upper.count) == (2, 2)
    assert all(torch.equal(getattr(whole, n)(), getattr(second, n)()) for n in program.reads)


class Regression(Node):
    def on_inner_loop_start(self) -> None:
        self().data.zero_()


class Penalties(Upper):
    def param_callback(self) -> None:
        self().data.clamp_(min=1e-8)


class Penalised(Program):
    """betty's example: the penalties of a logistic regression, one for each feature."""

    kinds = Regression, Penalties

    def start(self, name: str) -> Tensor:
        return torch.ones(20, dtype=torch.float64)

    def loss(self, name: str, at: dict[str, Tensor]) -> Tensor:
        weights, upper = at["regression"], name == "penalties"
        data = np.random.default_rng(upper).standard_normal((100, 21))
        x, noise = torch.from_numpy(data).split([20, 1], dim=1)
        y = x @ torch.from_numpy(np.random.default_rng(2).standard_normal(20)) + 0.1 * noise[:, 0]
        fit = binary_cross_entropy_with_logits(x @ weights, (y > 0).double())
        return fit if upper else fit + (at["penalties"] * weights.square()).sum() / 2


EXAMPLE = Penalised("penalties regression penalties")


@pytest.mark.parametrize("method", ["darts", "cg", "neumann"])
def test_learnt_penalties_help(method: str) -> None:
    config = ProblemConfig(type=method, options=INVERSES[method][0], unroll_steps=10)
    engine = EXAMPLE.build({"regression": config}, lr=1.0, train_iters=400)
    engine.run()
    first, *_, last = (float(EXAMPLE.loss("penalties", at)) for _, at in engine.penalties.seen)
    assert last < 0.48 < 0.57 < first  # 0.48 is betty's own threshold, for such data
    assert min(at["penalties"].min() for _, at in engine.penalties.seen) == 1e-8


def test_unrolling_is_autograd_through_the_steps() -> None:  # as betty's IterativeProblem
    engine = EXAMPLE.build({"regression": ProblemConfig("unrolled", 3)}, lr=0.2, train_iters=6)
    engine.run()
    for found, at in engine.penalties.seen:
        at["penalties"].requires_grad_()
        at["regression"] = torch.zeros(20, dtype=torch.float64)
        for _ in range(3):
            gradient = grad(lambda at: EXAMPLE.loss("regression", at))(at)["regression"]
            at["regression"] = at["regression"] - 0.2 * gradient
        (expected,) = torch.autograd.grad(EXAMPLE.loss("penalties", at), at["penalties"])
        assert (found - expected).norm() < 1e-12 * expected.norm()


class Tasks(Env):
    """A regression task at a time, as the environment of betty's MAML example."""

    def __init__(self) -> None:
        self.drawn = 0

    def step(self) -> None:
        data = np.random.default_rng(self.drawn).standard_normal((2, 5, 4))
        x, y = torch.from_numpy(data).split([3, 1], dim=2)
        self.batch = {name: (x[i], y[i, :, 0]) for i, name in enumerate(("train", "test"))}
        self.drawn += 1

    def state_dict(self) -> dict[str, Any]:
        return vars(self) | {name: None for name in ("inner", "outer")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn, self.batch = state["drawn"], state["batch"]


def squared_error(weights: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (batch[0] @ weights - batch[1]).square().sum()


class Outer(Upper):
    def training_step(self, batch: Any) -> Tensor:
        return squared_error(self.inner(), batch)

    def vectors(self) -> dict[str, Tensor]:
        return {"outer": self(), "inner": self.inner()}

    def get_batch(self) -> Any:
        self.tasks = [*getattr(self, "tasks", []), self.env.batch]
        return self.env.batch["test"]


class Inner(Node):
    def training_step(self, batch: Any) -> Tensor:
        return squared_error(self(), batch) + (self() - self.outer()).square().sum() / 2

    def get_batch(self) -> Any:
        return self.env.batch["train"]

    def on_inner_loop_start(self) -> None:
        self.module.load_state_dict(self.outer.module.state_dict())


class Episodes(Engine):
    def train_step(self) -> None:
        if self.global_step % 4 == 1:
            self.env.step()
        super().train_step()


def episodes(env: Any, accumulation: int = 1, name: str = "inner", steps: int = 12) -> Episodes:
    outer = Outer("outer", ProblemConfig(gradient_accumulation=accumulation))
    inner = Inner(name, ProblemConfig("cg", 4, options={"iterations": 3}))
    for problem in (outer, inner):
        problem.program, problem.lr = PROGRAMS["two levels"], 0.02
    dependencies = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    config = EngineConfig(strategy="cpu", train_iters=steps)
    return Episodes([outer, inner], config, dependencies, env=env)


def test_an_environment_hands_its_tasks_to_the_problems() -> None:  # as betty's MAML example
    env = Tasks()
    engine = episodes(env)
    assert engine.env is engine.inner.env is engine.outer.env is env
    assert (env.inner, env.outer, env.device) == (engine.inner, engine.outer, "cpu")
    engine.run()
    assert env.drawn == len(engine.outer.seen) == 3
    for (found, at), task in zip(engine.outer.seen, engine.outer.tasks, strict=True):
        v = grad(squared_error)(at["inner"], task["test"])
        # L's second derivative in φ, and −1 in φ and α.
        inverse = torch.linalg.inv(2 * task["train"][0].T @ task["train"][0] + EYE)
        assert (found - inverse @ v).norm() < 1e-9 * found.norm()


def test_an_environment_is_part_of_a_checkpoint() -> None:
    whole, first, second = (episodes(Tasks(), steps=steps) for steps in (12, 6, 12))
    whole.run()
    first.run()
    second.load_state_dict(first.state_dict())
    second.run()
    assert all(torch.equal(getattr(whole, n)(), getattr(second, n)()) for n in ("inner", "outer"))


def test_environments_that_cannot_be_right_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"got a builtins\.dict for env, expected a betty\.envs"):
        episodes({})
    with pytest.raises(UserError, match=r"named 'drawn', .* attribute of the environment"):
        episodes(Tasks(), name="drawn")
    episodes(Tasks(), accumulation=3)
    assert "'outer' draws the 3 micro-batches of a step at once" in caplog.text
