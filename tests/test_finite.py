"""Numbers that are not finite stop a run before a step or a file has them, at either level."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dreamprm.data.batches import BatchStream
from dreamprm.data.token_batches import TokenBatchStream
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.hypergradients import Point, indirect_gradient, resolve
from dreamprm.problems.finite import need_finite, need_finite_state
from dreamprm.run_directory.checkpoints import checkpoint_steps
from dreamprm.run_directory.metrics import read_metrics
from tests.toy import Regression, Weighting, toy

NAN, INF = float("nan"), float("inf")


def steep(parameter: Tensor) -> Tensor:
    """0, whose gradient is NaN: the loss shows nothing."""
    return (0 * parameter).sum().sqrt()


class LowerGradient(Regression):
    at = 3

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        losses = super().sample_losses(batch)
        return losses + steep(self.module.weight) if self.count == self.at else losses


class LowerLoss(Regression):
    at = 3

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return super().sample_losses(batch) * (NAN if self.count == self.at else 1.0)


class LowerParameter(Regression):
    at = 3

    def param_callback(self) -> None:
        if self.count == self.at:
            self.module.weight.data[0, 1] = -INF


class SecondDerivative(LowerGradient):
    """Its step's gradient is put right, that of its hypergradient is not."""

    at = 4

    def grad_callback(self) -> None:
        for parameter in self.trainable_parameters():
            parameter.grad = parameter.grad.nan_to_num()


class Hypergradient(Regression):
    at = 4

    def indirect_gradient(self, *arguments: Any) -> list[Tensor]:
        found = super().indirect_gradient(*arguments)
        return [g * NAN for g in found] if self.count == self.at else found


class UpperGradient(Weighting):
    at = 2

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = super().training_step(batch)
        return loss + steep(next(self.module.parameters())) if self.count == self.at else loss


class UpperVector(Weighting):
    at = 2

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = super().training_step(batch)
        return loss + steep(self.regression.module.weight) if self.count == self.at else loss


class UpperParameter(Weighting):
    at = 2

    def param_callback(self) -> None:
        if self.count == self.at:
            next(self.module.parameters()).data[0] = NAN


LOWER = "step 3 of the run: step 3 of problem 'regression': "
UPPER = "step 4 of the run: step 2 of problem 'weighting'"
FAULTS = {
    "loss": ({"lower": LowerLoss}, LOWER + "the loss is nan"),
    "gradient": ({"lower": LowerGradient}, LOWER + "the gradient is nan in 'weight'"),
    "parameter": (
        {"lower": LowerParameter},
        LOWER + "the parameter after the step is -inf in 'weight'",
    ),
    "hypergradient": ({"lower": Hypergradient}, UPPER + ": the gradient is nan in 'alpha'"),
    "second derivative": (
        {"lower": SecondDerivative},
        UPPER + ", hypergradient through 'regression': the hypergradient of method 't1t2' "
        "(no options) is not finite",
    ),
    "upper gradient": ({"upper": UpperGradient}, UPPER + ": the gradient is nan in 'alpha'"),
    "v": ({"upper": UpperVector}, UPPER + ": its gradient at 'regression' is nan in 'weight'"),
    "upper parameter": (
        {"upper": UpperParameter},
        UPPER + ": the parameter after the step is nan in 'alpha'",
    ),
}


def parameters(engine: ReweightingEngine) -> list[Tensor]:
    return [p.detach() for problem in engine.problems for p in problem.module.parameters()]


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_the_run_goes_on_from_before_it(
    tmp_path: Path, fault: str, every: int
) -> None:
    parts, message = FAULTS[fault]
    at = int(re.match(r"step (\d)", message)[1])  # type: ignore[index]
    # Once at the last step, and once at a checkpoint step.
    steps = at if not every else 8
    options: dict[str, Any] = {"log_every": 1, "checkpoint_every": every, "run_directory": tmp_path}
    with pytest.raises(FloatingPointError) as caught:
        toy(steps=steps, **parts, **options).run()
    found = str(caught.value)
    assert found.startswith(message + "; the batch: row ")
    newest = tmp_path / "checkpoints" / f"step-{at - 1}"
    hint = f"; the newest checkpoint, {newest}, is older" if every else ""
    assert found.endswith(" and 8 more" + hint)
    assert checkpoint_steps(tmp_path / "checkpoints") == ([at - 2, at - 1] if every else [])
    for row in read_metrics(tmp_path):
        assert all(map(math.isfinite, row.values()))
    if every:
        resumed, whole = toy(steps=steps, **options), toy(steps=steps)
        assert resumed.resume()
        assert resumed.global_step == at - 1
        resumed.run()
        whole.run()
        assert all(map(torch.equal, parameters(resumed), parameters(whole)))
        assert len(read_metrics(tmp_path)) == steps


@pytest.mark.parametrize("fault", ["gradient", "hypergradient", "second derivative", "v"])
def test_the_optimizer_takes_no_step_with_it(fault: str) -> None:
    parts, message = FAULTS[fault]
    engine = toy(**parts)
    problem = engine.upper if "weighting" in message else engine.lower
    assert problem is not None
    before: list[Tensor] = []
    original = problem.one_step_descent

    def one_step_descent(batch: Any = None) -> Any:
        before[:] = [p.detach().clone() for p in problem.trainable_parameters()]
        return original(batch)

    problem.one_step_descent = one_step_descent  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError):
        engine.run()
    assert all(map(torch.equal, before, problem.trainable_parameters()))


def test_a_checkpoint_of_another_run_is_not_called_one_from_before(tmp_path: Path) -> None:
    toy(steps=6, run_directory=tmp_path).run()
    with pytest.raises(FloatingPointError) as caught:
        toy(lower=LowerGradient, run_directory=tmp_path).run()
    assert "checkpoint" not in str(caught.value)


def test_a_learning_rate_may_overflow() -> None:
    with pytest.raises(FloatingPointError, match=r"step 1 of .*parameter after the step is -?inf"):
        toy(optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=3e38)).run()


def test_a_gradient_whose_norm_overflows_is_not_clipped_to_nothing() -> None:
    """1e20 is finite, its square is not: clipped, no step would be left, and no word said."""

    class Large(Regression):
        def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
            losses = super().sample_losses(batch)
            return losses + 1e20 * (self.module.weight - self.module.weight.detach()).sum()

    problem = {"gradient_clipping": 1.0}
    with pytest.raises(FloatingPointError, match=r"too large.* an entry of 1e\+20 in 'weight'"):
        toy(lower=Large, problem=problem).run()


def test_the_rows_are_those_of_the_micro_batch() -> None:
    class SecondOfTwo(Regression):
        calls = 0

        def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
            self.calls += 1
            self.rows = batch["x"]
            return super().sample_losses(batch) * (NAN if self.calls == 2 else 1.0)

    engine = toy(
        lower=SecondOfTwo, problem={"gradient_accumulation": 2}, batch_sizes=(4, 16), steps=4
    )
    with pytest.raises(FloatingPointError) as caught:
        engine.run()
    (loader,) = engine.lower.train_data_loader
    indices = list(map(int, re.findall(r"row (\d+) \([01]\)", str(caught.value))))
    assert torch.equal(torch.stack([loader.items[i]["x"] for i in indices]), engine.lower.rows)


def test_rows_are_named_by_what_they_say() -> None:
    def names(items: list[Any], size: int = 1) -> list[list[str]]:
        stream = BatchStream(items, size, list, 0)
        drawn = [next(batch) for batch in [iter(stream)] for _ in range(2)]
        assert drawn == [[items[i] for i in stream.indices(place)] for place in range(2)]
        return stream.recent_names(2)

    solution = SimpleNamespace(id="a-1", domain="chartqa")
    assert names([solution]) == [["a-1 (chartqa)"]] * 2
    assert names([[solution, SimpleNamespace(id="a\n2", domain=None)]])[0] == [
        "a-1 (chartqa)",
        "a 2",
    ]
    assert names([{"id": 7, "domain": torch.tensor(1)}])[0] == ["7 (1)"]
    assert names([(0, 1)])[0] == ["row 0"]
    numbers = BatchStream(range(10), 3, list, 0)
    batches = [next(batch) for batch in [iter(numbers)] for _ in range(4)]
    assert numbers.recent_names(2) == [[f"row {i}" for i in batch] for batch in batches[2:]]
    filled = TokenBatchStream(range(9), list(range(1, 10)), 20, 4, list, 0)
    batches = [next(batch) for batch in [iter(filled)] for _ in range(7)]
    assert filled.recent_names(3) == [[f"row {i}" for i in batch] for batch in batches[4:]]


def test_a_loader_that_names_nothing() -> None:
    engine = toy(lower=LowerGradient)
    engine.lower.train_data_loader = [list(map(next, [iter(engine.lower.train_data_loader[0])]))]
    engine.lower.train_data_iterator = [iter(engine.lower.train_data_loader[0])]
    with pytest.raises(FloatingPointError, match=r"is nan in 'weight'$"):
        engine.run()


def test_a_state_is_looked_at_before_it_is_written(tmp_path: Path) -> None:
    engine = toy(steps=4, run_directory=tmp_path, checkpoint_every=1)
    step = engine.train_step

    def overflowing() -> None:
        step()
        if engine.global_step == 3:
            first = engine.lower.trainable_parameters()[0]
            engine.lower.optimizer.state[first]["exp_avg_sq"][0, 0] = INF

    engine.train_step = overflowing  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError) as caught:
        engine.run()
    assert str(caught.value) == (
        "step 3 of the run: the state after it is inf in "
        "'regression.optimizer.state.0.exp_avg_sq'; "
        f"the newest checkpoint, {tmp_path}/checkpoints/step-2, is older"
    )
    assert checkpoint_steps(tmp_path / "checkpoints") == [1, 2]


def test_what_could_never_be_saved_is_found_before_the_first_step() -> None:
    engine = toy(module=nn.Linear(3, 1))
    engine.lower.module.register_buffer("mask", torch.tensor([0.0, -INF]))
    with pytest.raises(FloatingPointError, match=r"^step 0 of .* in 'regression\.module\.mask'$"):
        engine.run()
    assert engine.lower.count == 0
    engine.lower.module.register_buffer("mask", torch.tensor([0.0, -INF]), persistent=False)
    engine.run()


def test_batches_may_hold_anything(tmp_path: Path) -> None:
    engine = toy(run_directory=tmp_path)
    engine.lower.batches = [{"x": torch.tensor([NAN])}]
    engine.save()
    assert checkpoint_steps(tmp_path / "checkpoints") == [0]


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("order", [2.0, INF])
def test_one_entry_is_found_wherever_it_is(value: float, order: float) -> None:
    def tensors() -> list[Tensor | None]:
        shapes = [(), (1,), (3, 2), (130,)]
        dense = [torch.ones(shape, dtype=dtype) for dtype in DTYPES for shape in shapes]
        return [None, torch.ones(0), nn.Parameter(torch.ones(2)), *dense]

    need_finite("it", tensors(), str, order)
    for place, tensor in enumerate(tensors()):
        for entry in range(tensor.numel() if tensor is not None else 0):
            found = tensors()
            found[place].data.view(-1)[entry] = value  # type: ignore[union-attr]
            with pytest.raises(FloatingPointError, match=rf"^it is {value} in '{place}'$"):
                need_finite("it", found, str, order)


def test_a_sparse_gradient_is_looked_at() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    need_finite("it", [table.weight.grad], str)
    table(torch.tensor([4])).sum().mul(NAN).backward()
    with pytest.raises(FloatingPointError, match="it is nan in '0'"):
        need_finite("it", [table.weight.grad], str)


def test_a_state_is_searched_to_its_ends() -> None:
    state = {"a": [1, (torch.ones(2), {"b": torch.tensor([1.0, NAN])})], "c": torch.tensor([1])}
    with pytest.raises(FloatingPointError, match=r"state is nan in 'a.1.1.b'"):
        need_finite_state("the state", state)
    need_finite_state("the state", state, skip=("b",))
    # Of one byte there are frozen weights only, and no norm in torch.
    need_finite_state("the state", {"w": torch.ones(2).to(torch.float8_e4m3fn), "best": INF})


class Synchronisations(TorchDispatchMode):
    """Counts the values that leave the tensors for Python: on a GPU, each waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_check_is_one_synchronisation_however_many_parameters() -> None:
    with Synchronisations() as counter:
        need_finite("it", [torch.ones(3) for _ in range(50)], str)
    assert counter.count == 1
    phi = [torch.ones(3, requires_grad=True) for _ in range(50)]
    alpha = torch.ones(50, requires_grad=True)
    point = Point(
        lower_loss=lambda p, a: (torch.stack([x.sum() for x in p]) * a[0]).sum(),
        lower=phi,
        upper=[alpha],
        bits=24,
    )
    with Synchronisations() as counter:
        indirect_gradient(resolve("t1t2"), point, [torch.ones(3) for _ in range(50)], {})
    assert counter.count == 2  # v and the hypergradient
