"""Weights of the coming step: as in the paper, and refused where they mean nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamprm import load_config, train
from dreamprm.cli import main
from dreamprm.data.batches import BatchStream
from dreamprm.engines.base import EngineConfig
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.hypergradients import resolve
from dreamprm.problems.config import ProblemConfig
from dreamprm.weighting.next_step import NextStep
from tests.small_demo import SMALL_DEMO
from tests.toy import Regression, Weighting, rows, stack

RATE, BATCH = 0.05, 8


def in_double(items: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [
        {"x": row["x"].double(), "y": row["y"].double(), "index": torch.tensor(i)}
        for i, row in enumerate(items)
    ]


def streams() -> tuple[BatchStream, BatchStream]:
    lower = BatchStream(in_double(rows(64, 1, True)), BATCH, stack, 0)
    return lower, BatchStream(in_double(rows(32, 2, False)), 16, stack, 0)


def engine(steps: int, unroll_steps: int, method: str = "identity") -> ReweightingEngine:
    torch.manual_seed(0)
    module = nn.Linear(3, 1).double()
    train, meta = streams()
    lower = Regression(
        "regression",
        ProblemConfig(type=method, unroll_steps=unroll_steps),
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=RATE),
        train_data_loader=train,
    )
    upper = Weighting(
        module=NextStep(),
        optimizer=torch.optim.SGD([{"params": []}], lr=1.0),
        train_data_loader=meta,
    )
    return ReweightingEngine(lower, upper, EngineConfig(train_iters=steps, strategy="cpu"))


def by_hand(steps: int, unroll_steps: int) -> list[Tensor]:
    """Ren et al.'s algorithm 1 in plain torch; ∇M is taken anew after every ``unroll_steps``."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1).double()
    train, meta = map(iter, streams())
    parameters = list(module.parameters())

    def losses(batch: dict[str, Tensor]) -> Tensor:
        return (module(batch["x"]).squeeze(-1) - batch["y"]).square()

    direction = None
    for step in range(1, steps + 1):
        found = losses(next(train))
        weights = torch.ones(BATCH).double()
        if direction is not None:
            rises = []
            for loss in found:
                grads = torch.autograd.grad(loss, parameters, retain_graph=True)
                pairs = zip(grads, direction, strict=True)
                rises.append(sum((g * v).sum() for g, v in pairs))
            weights = torch.stack([max(rise, 0 * rise) for rise in rises])  # type: ignore[type-var]
            if weights.sum() > 0:
                weights = weights / weights.mean()
        grads = torch.autograd.grad((weights * found).mean(), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p -= RATE * g
        if step % unroll_steps == 0:
            direction = torch.autograd.grad(losses(next(meta)).mean(), parameters)
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("unroll_steps", [1, 3])
@pytest.mark.parametrize("method", ["identity", "identity+double_backward", "t1t2"])
def test_a_run_is_that_of_the_paper(unroll_steps: int, method: str) -> None:
    made = engine(12, unroll_steps, method)
    made.run()
    expected = by_hand(12, unroll_steps)
    for found, right in zip(made.lower.module.parameters(), expected, strict=True):
        assert torch.allclose(found, right, rtol=1e-12, atol=1e-14)


def test_samples_that_lead_away_count_nothing_and_no_step_is_no_division_by_zero() -> None:
    module = NextStep()
    assert module.of_alignments(torch.tensor([1.0, -2.0, 3.0])).tolist() == [0.75, 0, 2.25]
    assert module.of_alignments(torch.tensor([-1.0, -2.0])).tolist() == [0, 0]


@pytest.mark.parametrize("method", ["cg", "sama", "unrolled"])
def test_a_method_that_does_more_is_refused(method: str) -> None:
    options = {"iterations": 1} if method == "unrolled" else {}
    made = engine(4, 1)
    made.lower.config.options = options
    made.lower._method = resolve(method)
    with pytest.raises(UserError, match="for weights of the coming step"):
        made.run()
    words = ["weighting=learning_to_reweight", f"hypergradient={method}"]
    with pytest.raises(UserError, match=f"found hypergradient={method}: take identity"):
        load_config("noisy_labels", words)


@pytest.mark.parametrize("word", ["hypergradient_batch_size=4", "fidelity.every=5"])
def test_keys_without_use_are_refused(word: str) -> None:
    key, _, value = word.partition("=")
    with pytest.raises(UserError, match=f"{key} is {value}, expected 0"):
        load_config("learning_to_reweight", [word])


def test_a_run_is_better_than_a_plain_one_and_resumes_exactly(tmp_path: Path) -> None:
    words = ["steps=90", "validate_every=90", "checkpoint_every=30"]
    words += ["unreliable=5", "flipped=0.8"]

    def run(name: str, *more: str, **how: Any) -> dict[str, Any]:
        config = load_config("learning_to_reweight", [*words, f"out={tmp_path / name}", *more])
        found: dict[str, Any] = train(config, **how)["runs"]
        return found

    whole = run("whole")
    accuracy = whole["learning_to_reweight"]["accuracy"]
    assert accuracy > whole["uniform"]["accuracy"] + 0.03
    run("parts", "baseline=false")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-90")  # as if killed before it
    (tmp_path / "parts" / "summary.json").unlink()
    again = run("parts", "baseline=false", resume=True)
    assert again["learning_to_reweight"] == whole["learning_to_reweight"]


def test_a_reward_model_is_trained_so(tmp_path: Path) -> None:
    words = ["steps=6", "baseline=false", "weighting=learning_to_reweight", "unroll_steps=1"]
    words += ["hypergradient_batch_size=0", "lower.accumulate=2", "precision=bf16"]
    assert main(["demo", *SMALL_DEMO, *words, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_there_is_no_hypergradient_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hypergradients", "learning_to_reweight"]) == 2
    assert "no hypergradient" in capsys.readouterr().err
