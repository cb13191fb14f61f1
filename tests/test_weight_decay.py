"""Learned weight decay, a task without weights: its hypergradient in closed form, whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from dreamprm import load_config
from dreamprm.cli import main
from dreamprm.reporting.run import read_run
from dreamprm.run_directory.opening import open_run
from dreamprm.tasks.weight_decay import DecayEngine, build

SMALL = ["noise_columns=5", "noise_groups=2", "train_rows=40", "validation_rows=30"]


def ready(folder: Path, *words: str) -> DecayEngine:
    """An engine in float64 on whole batches, whose upper step is one of plain gradient descent."""
    sizes = ["lower.batch_size=40", "upper.batch_size=30", "steps=1", "unroll_steps=1"]
    config = load_config("weight_decay", [*SMALL, *sizes, *words, f"out={folder}/run"])
    with open_run(Path(config.out), config, resume=False, overwrite=False) as run:
        engine = build(config, run).engine(config, Path(config.out))
    engine.config.progress = engine.config.run_directory = None
    for problem, rate in ((engine.lower, 0.0), (engine.upper, 1.0)):
        assert problem is not None
        problem.module.double()
        problem.optimizer = SGD(problem.module.parameters(), lr=rate)
        problem.scheduler = None
        (stream,) = problem.train_data_loader
        columns = stream.items.columns
        columns |= {name: column.double() for name, column in columns.items()}
    engine.test = {name: column.double() for name, column in engine.test.items()}
    return engine


def fitted(alpha: Tensor, x: Tensor, y: Tensor, sizes: list[int]) -> Tensor:
    """argmin over φ of mean (Xφ − y)² + Σ e^(α_g) ‖φ_g‖²."""
    decay = torch.cat([a.exp().expand(size) for a, size in zip(alpha, sizes, strict=True)])
    return torch.linalg.solve(x.T @ x / len(x) + torch.diag(decay), x.T @ y / len(x))


def test_the_hypergradient_is_that_of_ridge_in_closed_form(tmp_path: Path) -> None:
    engine = ready(tmp_path, "hypergradient_options={iterations: 40, tolerance: 0.0}")
    assert engine.upper is not None
    alpha = torch.tensor([-3.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    (x, y), (x_valid, y_valid) = (
        [problem.train_data_loader[0].items.columns[name] for name in ("x", "y")]
        for problem in (engine.lower, engine.upper)
    )
    solution = fitted(alpha, x, y, [10, 5, 5])
    loss = (x_valid @ solution - y_valid).square().mean()
    (expected,) = torch.autograd.grad(loss, alpha)
    engine.upper.module.alpha.data = alpha.detach().clone()
    start = 0
    for parameter in engine.lower.module.parameters():
        parameter.data = solution.detach()[None, start : start + parameter.shape[1]].clone()
        start += parameter.shape[1]
    engine.run()
    found = alpha.detach() - engine.upper.module.alpha.detach()
    # CG on 20 unknowns, twice over: what is left is rounding times the condition, some 1e2.
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().min() > 1e-4


def test_it_runs_is_resumed_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["steps=60", "unroll_steps=5", "checkpoint_every=20", *SMALL, "lower.batch_size=20"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main(["train", "weight_decay", "--out", str(whole), *words]) == 0
    printed = capsys.readouterr().out
    assert "decay, noise-2" in printed
    assert "weight of" not in printed
    summary = json.loads((whole / "summary.json").read_text())
    assert list(summary["runs"]) == ["uniform", "learned"]
    assert summary["weights"] == {}
    assert set(summary["data"]) == {"train rows", "validation rows", "test rows"}
    learned = summary["runs"]["learned"]
    assert learned["decay/noise-1"] > summary["runs"]["uniform"]["decay/noise-1"]
    page = (whole / "report.html").read_text()
    assert "one decay for all" in page
    assert "uniform weights" not in page
    assert not read_run(whole).weights
    command = ["train", "weight_decay", "--out", str(again), *words, "baseline=false"]
    assert main(command) == 0
    (again / "summary.json").unlink()
    checkpoint = again / "checkpoints" / "step-60"
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()
    assert main([*command, "--resume"]) == 0
    found = json.loads((again / "summary.json").read_text())["runs"]
    assert found == {"learned": learned}


def test_learn_false_is_the_run_to_compare_with() -> None:
    config = load_config("weight_decay", ["learn=false"])
    assert (config.run_name, config.plain().run_name) == ("uniform", "uniform")
    assert not hasattr(config, "weighting")
