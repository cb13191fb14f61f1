"""The remedies for betty-ml 0.2.1 in our Problem: each test fails where betty's own code runs."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import betty.configs
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LinearLR, OneCycleLR, SequentialLR

from dreamprm.data.batches import BatchStream
from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.hypergradients import hypergradient
from dreamprm.problems.base import Problem
from dreamprm.problems.config import ProblemConfig
from tests.test_differences import Doubled
from tests.toy import Regression, Weighting, rows, stack, toy


def test_adamw_and_parameter_groups_are_kept() -> None:
    def grouped(module: nn.Module) -> torch.optim.Optimizer:
        weight, bias = module.parameters()
        return torch.optim.AdamW(
            [{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.0, "weight_decay": 0.5}]
        )

    engine = toy(optimizer=grouped)
    bias = engine.lower.module.bias.clone()
    engine.run()
    assert [group["lr"] for group in engine.lower.optimizer.param_groups] == [0.1, 0.0]
    assert [group["weight_decay"] for group in engine.lower.optimizer.param_groups] == [0.01, 0.5]
    assert torch.equal(engine.lower.module.bias, bias)


@pytest.mark.parametrize(
    "build",
    [
        lambda o: OneCycleLR(o, max_lr=0.1, total_steps=20),
        lambda o: SequentialLR(o, [LinearLR(o), ConstantLR(o)], milestones=[5]),
    ],
)
def test_any_scheduler_is_kept_and_steps(build: Any) -> None:
    engine = toy(steps=7, scheduler=build)
    scheduler = engine.lower.scheduler
    engine.run()
    assert engine.lower.scheduler is scheduler
    assert scheduler.last_epoch == 7


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    frozen = module[0].weight.clone()
    engine = toy(module=module)
    assert engine.lower.trainable_parameters() == list(module[1].parameters())
    engine.run()
    assert torch.equal(module[0].weight, frozen)


def test_autocast_is_that_of_the_device() -> None:
    seen: list[torch.dtype] = []

    class Watching(Regression):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    toy(steps=2, lower=Watching, problem={"precision": "bf16"}).run()
    # Two lower steps, the meta loss (which has no autocast here), the hypergradient's evaluation.
    assert seen.count(torch.bfloat16) == 3


Pair = namedtuple("Pair", ["left", "right"])


def test_batches_move_to_the_device_however_nested() -> None:
    class Loader:
        def __iter__(self) -> Any:
            yield {"a": {"b": [torch.ones(2)]}, "c": Pair(torch.ones(2), "text")}

    class Elsewhere(Regression):
        def patch_module(self) -> None:
            pass

    problem = Elsewhere("regression", module=nn.Linear(1, 1))
    problem.train_data_loader, problem.device = [Loader()], torch.device("meta")
    problem.train_data_iterator, problem.epoch_counter = [iter(Loader())], [0]
    for _ in range(2):  # the second time from a new epoch
        batch = problem.get_batch()
        assert batch["a"]["b"][0].device.type == "meta"
        assert isinstance(batch["c"], Pair)
        assert batch["c"].left.device.type == "meta"
        assert batch["c"].right == "text"
    assert problem.epoch_counter == [1]


@pytest.mark.parametrize("method", ["t1t2", "darts", "neumann"])
def test_the_upper_gradient_is_the_functional_hypergradient(method: str) -> None:
    class Keeping(Weighting):
        kept: Tensor

        def optimizer_step(self) -> None:
            Keeping.kept = self.module.alpha.grad.clone()
            Keeping.phi = [p.detach().clone() for p in self.regression.module.parameters()]
            Keeping.batches = self.cur_batch, self.regression.cur_batch

    engine = toy(steps=2, method=method)
    engine.upper.__class__ = Keeping
    engine.run()
    meta, train = Keeping.batches

    def residual(batch: dict[str, Tensor], phi: list[Tensor]) -> Tensor:
        return (batch["x"] @ phi[0].T).squeeze(-1) + phi[1] - batch["y"]

    def lower(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        weights = nn.functional.softplus(alpha[0])
        weights = weights / weights.mean()
        return (weights[train["domain"]] * residual(train, phi).square()).mean()

    (expected,) = hypergradient(
        method,
        lambda phi, alpha: residual(meta, phi).square().mean(),
        lower,
        Keeping.phi,
        [torch.zeros(2)],
    )
    # The same numbers by other kernels: float32 rounding, divided by the step for differences.
    assert torch.allclose(Keeping.kept, expected, rtol=1e-5 if method != "darts" else 1e-2)


def test_the_mislabelled_domain_loses_weight() -> None:
    engine = toy(steps=200)
    engine.run()
    weights = engine.weights()
    assert weights["wrong"] < 0.3 < 1.7 < weights["right"]


def test_running_statistics_do_not_see_the_hypergradient() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    engine = toy(steps=2, module=module)
    engine.run()
    # Two lower steps and one meta loss.
    assert module[0].num_batches_tracked == 3


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    class Broken(Regression):
        def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
            return super().sample_losses(batch) * (float("nan") if self.count == 3 else 1.0)

    with pytest.raises(FloatingPointError, match="step 3 of problem 'regression': the loss is nan"):
        toy(lower=Broken).run()


@pytest.mark.parametrize("method", ["t1t2", "identity+double_backward", "darts"])
def test_parameters_that_the_upper_loss_ignores_have_no_say(method: str) -> None:
    """They are variables of the lower problem all the same, and v is 0 there."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.unread = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Tensor, both: bool = False) -> Tensor:
            return self.read(x) + self.unread(x) if both else self.read(x)

    class Both(Regression):
        def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
            return (self(batch["x"], True).squeeze(-1) - batch["y"]).square()

    class Keeping(Weighting):
        def grad_callback(self) -> None:
            self.kept = self.module.alpha.grad.clone()

    engine = toy(steps=2, method=method, module=Two(), lower=Both, upper=Keeping)
    engine.run()
    meta, train = engine.upper.cur_batch, engine.lower.cur_batch
    names = [name for name, _ in engine.lower.module.named_parameters()]

    def residual(batch: dict[str, Tensor], phi: list[Tensor], both: bool) -> Tensor:
        at = dict(zip(names, phi, strict=True))
        found = torch.func.functional_call(engine.lower.module, at, (batch["x"], both))
        return found.squeeze(-1) - batch["y"]

    def lower(phi: list[Tensor], alpha: list[Tensor]) -> Tensor:
        weights = nn.functional.softplus(alpha[0])
        weights = (weights / weights.mean())[train["domain"]]
        return (weights * residual(train, phi, True).square()).mean()

    (expected,) = hypergradient(
        method,
        lambda phi, alpha: residual(meta, phi, False).square().mean(),
        lower,
        [p.detach() for p in engine.lower.trainable_parameters()],
        [torch.zeros(2)],
    )
    # float32 rounding, divided by the step for differences.
    assert torch.allclose(engine.upper.kept, expected, rtol=1e-5 if method != "darts" else 1e-2)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_whatever_loss_is_not_finite_stops_the_run(value: float) -> None:
    class Broken(Weighting):
        def training_step(self, batch: dict[str, Tensor]) -> Tensor:
            return super().training_step(batch) + value

    with pytest.raises(FloatingPointError, match=f"problem 'weighting'.*: the loss is {value}"):
        toy(upper=Broken).run()


def test_the_logged_loss_without_weights_is_of_every_sample_alike() -> None:
    engine = toy(steps=1)
    engine.upper.module.alpha.data = torch.tensor([2.0, -2.0])
    batch = next(iter(engine.lower.train_data_loader[0]))
    losses = engine.lower.sample_losses(batch)
    found = engine.lower.training_step(batch)
    assert torch.allclose(found["unweighted_loss"], losses.mean())
    assert not found["unweighted_loss"].requires_grad
    weights = engine.upper.module.weights()[batch["domain"]]
    assert weights.std() > 0.1
    assert torch.allclose(found["loss"], (weights * losses).sum() / len(losses))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"first_order": False}, "first_order=False"),
        ({"unroll_steps": 0}, "unroll_steps is 0"),
        ({"gradient_clipping": -1.0}, "gradient_clipping is -1.0"),
        ({"fidelity_every": -1}, "fidelity_every is -1"),
        ({"cg_iterations": 7}, "cg_iterations is betty's own and not used here"),
        (
            {"type": "unrolled", "unroll_steps": 3, "options": {"iterations": 4}},
            "iterations is 4, expected at most the 3 lower steps",
        ),
        ({"type": "dart"}, "did you mean 'darts'"),
        ({"type": "darts", "options": {"alpha": 1.0}}, "unknown option"),
    ],
)
def test_wrong_configs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProblemConfig(**options)


def test_bettys_own_config_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected a dreamprm\.problems"):
        Problem("p", betty.configs.Config(type="cg", cg_iterations=7))


def test_hooks_that_would_be_ignored_are_refused() -> None:
    class Grouped(Regression):
        def param_groups(self) -> list[Any]:
            return []

    with pytest.raises(UserError, match="give the groups to the optimizer"):
        toy(lower=Grouped)


def test_without_an_upper_problem_every_sample_counts_one() -> None:
    config = {"train_iters": 3, "strategy": "cpu"}
    lower = Regression(
        "regression",
        module=nn.Linear(3, 1),
        optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)]),
        train_data_loader=BatchStream(rows(16, 1, True), 16, stack, 0),
    )
    engine = ReweightingEngine(lower, None, EngineConfig(**config))
    losses: list[dict[str, float]] = []
    engine.train_step = lambda: (lower.step(), losses.append(lower.stats))  # type: ignore
    engine.run()
    assert engine.weights() == {}
    whole = lower.sample_losses(stack(rows(16, 1, True))).mean().item()
    for stats in losses:
        assert stats["loss"] == stats["unweighted_loss"] == pytest.approx(whole, rel=1e-6)


def test_a_problem_without_an_optimizer_is_refused() -> None:
    lower = Regression("regression", module=nn.Linear(3, 1), train_data_loader=[])
    with pytest.raises(UserError, match="'regression' has no optimizer"):
        ReweightingEngine(lower, None, EngineConfig(strategy="cpu"))


def test_trainable_parameters_that_the_optimizer_forgets_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    toy(module=module, optimizer=lambda m: torch.optim.SGD(m[1].parameters(), lr=0.1))
    assert "does not hold 2 of its trainable parameters, 0.weight the first" in caplog.text
    caplog.clear()
    module[0].requires_grad_(False)
    toy(module=module, optimizer=lambda m: torch.optim.SGD(m[1].parameters(), lr=0.1))
    assert "trainable parameters" not in caplog.text


def test_modules_that_share_parameters_are_refused() -> None:
    class Sharing(Weighting):
        def patch_module(self) -> None:
            super().patch_module()
            self.module.below = self.regression.module

    with pytest.raises(UserError, match="share trainable parameters"):
        toy(upper=Sharing, steps=2).run()


def test_statistics_that_are_no_numbers_stay_out_of_the_log() -> None:
    class Talking(Weighting):
        def training_step(self, batch: dict[str, Tensor]) -> dict[str, Any]:
            loss = super().training_step(batch)
            return {"loss": loss, "note": "hello", "each": [1.0, 2.0], "rate": 0.5}

    engine = toy(upper=Talking, steps=2)
    kept: list[dict[str, float]] = []
    log = engine.upper.log
    engine.upper.log = lambda *args: (log(*args), kept.append(engine.upper.stats))  # type: ignore
    engine.run()
    assert [set(stats) for stats in kept] == [{"loss", "rate"}]


def fidelity_errors(engine: ReweightingEngine) -> list[float]:
    """Runs, and gives what was measured after each step."""
    errors: list[float] = []
    step = engine.train_step

    def watched() -> None:
        step()
        errors.extend(
            [engine.lower.stats[k] for k in engine.lower.stats if k == "hypergradient_error"]
        )

    engine.train_step = watched  # type: ignore[method-assign]
    engine.run()
    return errors


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fidelity_compares_under_one_dropout_mask(dropout: float) -> None:
    """An exact product against an exact product: nothing but float32 rounding may differ."""
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 1))
    engine = toy(steps=8, module=module, problem={"fidelity_every": 2})
    errors = fidelity_errors(engine)
    assert len(errors) == 4
    assert max(errors) < 1e-5


def test_accumulated_fidelity_is_due_as_often_as_asked() -> None:
    engine = toy(steps=16, problem={"fidelity_every": 4, "gradient_accumulation": 4})
    due = 0
    step = engine.train_step

    def watched() -> None:
        nonlocal due
        step()
        due += "hypergradient_error" in engine.lower.stats

    engine.train_step = watched  # type: ignore[method-assign]
    engine.run()
    assert due == 4


def test_a_hessian_that_lacks_a_lower_response_is_refused() -> None:
    def problem(name: str, type: str) -> Problem:
        module = nn.Linear(1, 1)
        return Problem(
            name,
            ProblemConfig(type=type),
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        )

    for type, refused in (("cg", True), ("f2sa", True), ("t1t2", False), ("sama", False)):
        top, middle, bottom = (
            problem("top", "t1t2"),
            problem("middle", type),
            problem("bottom", "cg"),
        )
        Engine(
            [top, middle, bottom],
            EngineConfig(strategy="cpu"),
            {"u2l": {top: [middle], middle: [bottom]}, "l2u": {bottom: [middle], middle: [top]}},
        )
        assert middle._paths
        with pytest.raises((UserError, AssertionError)) as raised:
            middle.indirect_gradient([torch.ones(1, 1), torch.ones(1)], top)
        assert ("whose response would be missing" in str(raised.value)) == refused


def test_decay_that_the_hessian_lacks_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """With the damping that stands for it: SGD's own, AdamW's by its state."""

    def sgd(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.25)

    toy(method="cg", optimizer=sgd).run()
    said = [r.getMessage() for r in caplog.records if "Hessian is that of the loss" in r.message]
    assert len(said) == 1
    assert "SGD adds by itself: damping=0.25 puts it back" in said[0]
    caplog.clear()
    toy(method="neumann").run()  # AdamW's default is 0.01
    assert "(0.01) that AdamW adds by itself" in caplog.text
    caplog.clear()
    toy(method="cg", optimizer=sgd, problem={"options": {"damping": 0.1}}).run()
    toy(method="t1t2", optimizer=sgd).run()
    toy(method="cg", optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)).run()
    assert "adds by itself" not in caplog.text


def test_decay_of_an_optimizer_that_is_not_written_out_is_said_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Conjugate gradient never asks for the optimizer's steps."""

    def amsgrad(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=0.05, amsgrad=True)

    def one_only(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(list(module.parameters())[:1], lr=0.05)

    for optimizer in (amsgrad, one_only):
        caplog.clear()
        toy(method="cg", optimizer=optimizer).run()
        assert "that AdamW adds by itself: a damping can stand for it" in caplog.text


class WithoutForwardMode(Regression):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return Doubled.apply(super().sample_losses(batch)) / 2


def test_fidelity_where_the_loss_has_no_forward_mode() -> None:
    """By double backward: the default takes differences there, right to 1e-2 in fp32."""
    problem = {"fidelity_every": 2}
    engine = toy(steps=4, method="identity", problem=problem, lower=WithoutForwardMode)
    errors = fidelity_errors(engine)
    assert len(errors) == 2
    assert 0 < max(errors) < 1e-2


class WithoutForwardModeAtTimes(Regression):
    """Its third step only, which the default meets at its second hypergradient."""

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        found = super().sample_losses(batch)
        return Doubled.apply(found) / 2 if 3 <= self.count <= 4 else found


def test_what_a_method_notes_outlasts_a_resume(tmp_path: Path) -> None:
    """That there is no forward mode, and which differences are checked."""
    parts: dict[str, Any] = {"method": "identity", "lower": WithoutForwardModeAtTimes}
    whole = toy(steps=12, **parts)
    whole.run()
    toy(steps=6, run_directory=tmp_path, **parts).run()
    second = toy(steps=12, run_directory=tmp_path, **parts)
    assert second.resume()
    second.run()
    assert torch.equal(whole.upper.module.alpha, second.upper.module.alpha)
    assert whole.lower._memory == second.lower._memory
