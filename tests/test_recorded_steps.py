"""Hypergradients that see the lower steps of a run: left-out parameters, clipping, resuming."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.hypergradients.precision import PrecisionWarning
from dreamprm.problems.fidelity import is_due
from dreamprm.problems.history import next_step
from tests.toy import Regression, Weighting, toy


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Keeping(Weighting):
    """Keeps its last gradient."""

    def grad_callback(self) -> None:
        self.kept = self.module.alpha.grad.clone()


class Spared(nn.Module):
    """A layer and a second one that some batches do without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor, with_second: bool = True) -> Tensor:
        out = self.first(x)
        return out + self.second(x).tanh() if with_second else out


class Sparing(Regression):
    """Its batches do without the second layer where their first number is negative."""

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        with_second = bool(batch["x"][0, 0] > 0)
        return (self(batch["x"], with_second).squeeze(-1) - batch["y"]).square()


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def build(steps: int, **options: Any) -> ReweightingEngine:
    torch.manual_seed(0)
    return toy(steps, **{"upper": Keeping, "optimizer": sgd} | options)


def derivative_of_the_run(start: int, end: int, **options: Any) -> tuple[Tensor, Tensor]:
    """What the method says at ``end``, and differences of runs whose α moves after ``start``."""
    engine = build(start, **options)
    engine.run()
    before = copy.deepcopy(engine.state_dict())

    def rest(shift: Tensor) -> tuple[float, Tensor]:
        engine = build(end, **options)
        engine.load_state_dict(copy.deepcopy(before))
        engine.upper.module.alpha.data += shift
        losses: list[float] = []
        log = engine.upper.log
        engine.upper.log = lambda *a: (log(*a), losses.append(engine.upper.stats["loss"]))  # type: ignore
        engine.run()
        return losses[-1], engine.upper.kept

    step = 1e-5
    shifts = step * torch.eye(2)
    differences = [(rest(s)[0] - rest(-s)[0]) / (2 * step) for s in shifts]
    return rest(torch.zeros(2))[1], torch.tensor(differences)


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_unrolling_leaves_out_what_a_step_left_out(clip: float) -> None:
    """torch moves no parameter without a gradient, not even by its momentum or decay."""
    found, expected = derivative_of_the_run(
        4,
        8,
        method="unrolled",
        module=Spared(),
        lower=Sparing,
        problem={"unroll_steps": 4, "gradient_clipping": clip},
        batch_sizes=(8, 16),
    )
    engine = build(
        8, method="unrolled", module=Spared(), lower=Sparing, problem={"unroll_steps": 4}
    )
    engine.run()
    kinds = [step.rules[2].kind for step in engine.lower._history.recorded]
    assert set(kinds) == {"sgd", "skip"}
    # Differences of the run: rounding 1e-16 / 1e-5, truncation of the order of step² = 1e-10.
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 3])
def test_truncated_unrolling_is_the_derivative_through_the_last_steps(iterations: int) -> None:
    found, expected = derivative_of_the_run(
        10 - iterations,
        10,
        method="unrolled",
        problem={"unroll_steps": 5, "options": {"iterations": iterations}},
    )
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9)
    whole, _ = derivative_of_the_run(5, 10, method="unrolled", problem={"unroll_steps": 5})
    assert not torch.allclose(found, whole, rtol=1e-3)


def test_no_more_steps_are_kept_than_are_used() -> None:
    for steps, unroll_steps, options in ((5, 5, {"iterations": 2}), (8, 2, {})):
        problem = {"unroll_steps": unroll_steps, "options": options}
        engine = build(steps, method="unrolled", problem=problem)
        engine.run()
        assert len(engine.lower._history.recorded) == 2


def test_sama_goes_through_the_clipping_of_the_step() -> None:
    """u(g) = η c g / ‖g‖, so Dᵀv = η c (v − ĝ ĝᵀv) / ‖g‖, by hand."""
    clip, rate = 0.3, 0.05
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []

    class Seen(Regression):
        def optimizer_step(self) -> None:
            weight = self.module.weight
            seen.append((weight.grad.clone().squeeze(0), self.cur_batch))
            super().optimizer_step()

    engine = build(
        2,
        method="sama+forward",
        module=nn.Linear(3, 1, bias=False),
        lower=Seen,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=rate),
        problem={"unroll_steps": 2, "gradient_clipping": clip},
    )
    meta = next(iter(copy.deepcopy(engine.upper.train_data_loader[0])))
    engine.run()
    gradient, batch = seen[-1]
    assert gradient.norm() > clip
    phi = engine.lower.module.weight.detach().squeeze(0)

    def weighted(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """∇_φ mean_i w_i (x_i·φ − y_i)²"""
        return 2 * ((x @ phi - y) * weights) @ x / len(y)

    v = weighted(meta["x"], meta["y"], torch.ones(len(meta["y"])))
    unit = gradient / gradient.norm()
    q = rate * clip * (v - unit * (unit @ v)) / gradient.norm()
    first = weighted(batch["x"], batch["y"], (batch["domain"] == 0).double())
    second = weighted(batch["x"], batch["y"], (batch["domain"] == 1).double())
    # At α = 0: w = (2s₁, 2s₂)/(s₁ + s₂) with sᵢ' / sᵢ = ½ / ln 2, so ∂w₁/∂α₁ = ¼ / ln 2.
    slope = 0.25 / torch.tensor(2.0).log()
    expected = -slope * torch.stack([(first - second) @ q, (second - first) @ q])
    # torch adds 1e-6 to the norm.
    assert torch.allclose(engine.upper.kept, expected, rtol=1e-5)


def test_the_next_step_skips_parameters_without_a_gradient() -> None:
    module = nn.Sequential(nn.Linear(3, 1))
    module.spare = nn.Linear(2, 2)
    engine = build(2, method="sama", module=module, problem={"gradient_clipping": 0.3})
    engine.lower.forward = lambda x: module[0](x)  # type: ignore[method-assign]
    engine.run()
    step = next_step(engine.lower, engine.lower._history)
    assert [rule.kind for rule in step.rules] == ["sgd", "sgd", "skip", "skip"]
    assert step.clip == 0.3
    assert step.gradient is not None
    assert not step.gradient[2].any()
    assert step.gradient[0].any()


@pytest.mark.parametrize("hook", ["custom_optimizer_step", "grad_callback", "param_callback"])
@pytest.mark.parametrize("method", ["sama", "unrolled", "t1t2"])
def test_hooks_that_change_the_steps_are_refused_where_they_are_differentiated(
    method: str, hook: str
) -> None:
    lower = type("Hooked", (Regression,), {hook: lambda self, *args: self.optimizer.step()})
    engine = build(2, method=method, lower=lower)
    if method == "t1t2":
        engine.run()
        return
    with pytest.raises(UserError, match=f"'{method}' .* 'regression' changes them in {hook}"):
        engine.run()


@pytest.mark.parametrize("method", ["t1t2", "f2sa", "sama", "unrolled", "cg"])
def test_a_resumed_problem_answers_before_its_next_step(method: str) -> None:
    """Where an upper problem steps first: the same batches, arithmetic and recorded steps."""
    options = {"options": {"damping": 9.0}} if method == "cg" else {}
    first, second = (build(3, method=method, problem=options) for _ in range(2))
    first.run()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert (second.lower._bits, second.lower.count) == (first.lower._bits, 3)
    vector = [torch.ones_like(p) for p in first.lower.trainable_parameters()]
    answers = []
    for engine in (first, second):
        upper_loss = (lambda p, a: sum(x.square().sum() for x in p)) if method == "f2sa" else None
        torch.manual_seed(1)
        answers.append(engine.lower.indirect_gradient(vector, engine.upper, upper_loss))  # type: ignore[arg-type]
    assert torch.equal(*(answer[0] for answer in answers))
    assert answers[0][0].any()


def test_the_arithmetic_of_the_loss_is_known_to_the_method() -> None:
    """Of a loss under bf16 autocast, also after a resume."""
    torch.set_default_dtype(torch.float32)
    options: dict[str, Any] = {"method": "f2sa", "problem": {"precision": "bf16"}}
    first, second = build(2, **options), build(4, **options)
    with pytest.warns(PrecisionWarning, match="f2sa"):
        first.run()
    assert first.lower._bits == 7
    second.load_state_dict(first.state_dict())
    assert second.lower._bits == 7
    with pytest.warns(PrecisionWarning, match="f2sa"):
        second.run()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        build(2, method="f2sa").run()


@pytest.mark.parametrize("method", ["darts", "unrolled"])
def test_a_comparison_with_the_exact_product_changes_no_run(method: str) -> None:
    """Unrolling replays the masks of its steps, and the product that it is held to draws one."""
    runs = []
    for every in (0, 2):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        engine = build(8, method=method, module=module, problem={"fidelity_every": every})
        engine.run()
        runs.append([p.detach() for q in engine.problems for p in q.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def compared(method: str, **problem: Any) -> float:
    """The error that a run says of its hypergradient."""
    found: list[float] = []

    class Telling(Keeping):
        def grad_callback(self) -> None:
            found.append(self.regression.stats["hypergradient_error"])

    problem |= {"fidelity_every": 2}
    build(2, method=method, module=nn.Linear(3, 1), upper=Telling, problem=problem).run()
    return found[0]


def test_a_hypergradient_is_compared_with_one_of_the_same_options_without_autocast() -> None:
    options = {"iterations": 1, "damping": 5.0}
    assert compared("cg+double_backward", options=options) < 1e-10
    torch.set_default_dtype(torch.float32)
    assert compared("t1t2") < 1e-5
    # bf16 rounds to 2⁻⁸.
    assert 1e-4 < compared("t1t2", precision="bf16") < 0.1


@pytest.mark.parametrize(
    ("every", "unroll_steps", "expected"),
    [(0, 2, []), (1, 2, [2, 4, 6, 8, 10, 12]), (3, 2, [4, 6, 10, 12]), (4, 3, [6, 9, 12])],
)
def test_a_comparison_is_due_at_the_first_upper_step_from_a_multiple_on(
    every: int, unroll_steps: int, expected: list[int]
) -> None:
    counts = range(unroll_steps, 13, unroll_steps)
    assert [n for n in counts if is_due(every, n, unroll_steps)] == expected
