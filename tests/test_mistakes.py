"""Mistakes in a task of one's own, and around a run directory: one clear message, in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from dreamprm import UserError, load_config, train
from dreamprm.cli import main
from dreamprm.engines.run import run_task
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem
from dreamprm.tasks import ReweightingTask, RunConfig
from dreamprm.tasks.config import OptimizerConfig
from dreamprm.tasks.reweighting import rows_of
from dreamprm.weighting import build_weighting


class Fit(ReweightedProblem):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return (self(batch["x"]).squeeze(-1) - batch["y"]).square()


class Mean(Fit):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return super().sample_losses(batch).mean()


class Column(Fit):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return super().sample_losses(batch)[:, None]


class Detached(Fit):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return super().sample_losses(batch).detach()


class Trust(WeightingProblem):
    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.model(batch["x"]).squeeze(-1) - batch["y"]).square().mean()


def rows(count: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=draw)
    return [{"x": x[i], "y": x[i].sum(), "domain": "ab"[i % 2]} for i in range(count)]


def config(out: Path, **changes: Any) -> RunConfig:
    level = OptimizerConfig(learning_rate=0.1, batch_size=8)
    given = {"steps": 10, "device": "cpu", "lower": level, "upper": level, "out": str(out)}
    return RunConfig(**(given | changes))  # type: ignore[arg-type]


class Module:
    """A task's module."""

    Config = RunConfig

    def __init__(self, lower: type = Fit, train: int = 32, meta: int = 16, **parts: Any) -> None:
        self.lower, self.train, self.meta, self.parts = lower, train, meta, parts

    def build(self, config: RunConfig, run: Any) -> ReweightingTask:
        return ReweightingTask(
            config,
            lambda: nn.Linear(2, 1),
            self.lower,
            Trust,
            rows(self.train),
            rows(self.meta),
            **self.parts,
        )


@pytest.mark.parametrize(
    ("lower", "message"),
    [
        (Mean, r"sample_losses of problem 'model' gave the shape \[\], expected \[8\]"),
        (Column, r"gave the shape \[8, 1\], expected \[8\]"),
        (Detached, "depends on no parameter"),
    ],
)
def test_losses_that_are_not_of_samples_are_refused(
    lower: type, message: str, tmp_path: Path
) -> None:
    given = config(tmp_path / "run", weighting="uniform", baseline=False)
    with pytest.raises(UserError, match=message):
        run_task(given, Module(lower))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": 0}, "the task's train has no rows"),
        ({"meta": 0}, "the task's meta has no rows"),
        ({"validate": lambda module: torch.tensor(1.0)}, "validate gave a Tensor"),
    ],
)
def test_parts_that_are_missing_or_wrong_are_named(
    parts: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run_task(config(tmp_path / "run"), Module(**parts))


def test_a_plain_run_needs_no_meta_set(tmp_path: Path) -> None:
    run_task(config(tmp_path / "run", weighting="uniform"), Module(meta=0))
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_build_that_gives_nothing_is_named(tmp_path: Path) -> None:
    module = Module()
    module.build = lambda config, run: None  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(UserError, match="build of the task gave None"):
        run_task(config(tmp_path / "run"), module)


def test_the_truth_may_be_a_tensor_and_the_module_is_kept(tmp_path: Path) -> None:
    given = config(
        tmp_path / "run", weighting="label_table", weighting_options={"low": -9.0, "high": 9.0}
    )
    truth = torch.stack([row["y"] for row in rows(32)])
    summary = run_task(given, Module(truth=truth, labels="y"))
    assert summary["runs"]["label_table"]["wrong_labels"] == 0
    module = nn.Linear(2, 1)
    before = module.weight.detach().clone()
    load_model(module, str(tmp_path / "run" / "model" / "model.safetensors"))
    assert not torch.equal(module.weight, before)


def test_a_run_inside_another_is_refused(tmp_path: Path) -> None:
    run_task(config(tmp_path / "run"), Module())
    with pytest.raises(UserError, match=r"lies inside the run .*run, which writes there itself"):
        run_task(config(tmp_path / "run" / "uniform"), Module())
    run_task(config(tmp_path / "uniform"), Module())  # a name that is no run's part here


def test_resuming_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dreamprm"):
        run_task(config(tmp_path / "run"), Module(), resume=True)
    assert "holds no run to continue: it begins" in caplog.text


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("task: noisy_labels\nsteps: 300\nseed: 1\nsteps: 20\n")
    with pytest.raises(UserError, match="the key steps stands in line 2 and in line 4"):
        load_config(str(file))
    file.write_text("task: noisy_labels\nlower: {batch_size: 3, batch_size: 4}\n")
    with pytest.raises(UserError, match="the key batch_size stands in line 2 and in line 2"):
        load_config(str(file))
    file.write_text("? [a, b]\n: 1\n")
    with pytest.raises(UserError, match=r"my\.yaml"):
        load_config(str(file))
    file.write_text("lower: &level {batch_size: 3}\nupper: {<<: *level, <<: *level}\n")
    with pytest.raises(UserError, match="steps"):  # missing, while the merges may repeat
        load_config(str(file))
    file.write_text("# nothing\n")
    with pytest.raises(UserError, match=r"my\.yaml is empty"):
        load_config(str(file))


def test_a_backbone_folder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere"
    words = [f"model.backbone={missing}", f"out={tmp_path / 'run'}"]
    assert main(["train", "demo", "data.synthetic.questions=2", *words]) == 2
    assert f"there is no folder {missing} with a model" in capsys.readouterr().err


def test_the_oracle_of_another_column_names_no_groups() -> None:
    data = [{"crowd": "xy"[i % 2], "clean": i > 2} for i in range(6)]
    module = build_weighting("oracle", rows_of(data, "crowd", dict), {})
    assert module is not None
    assert module.named_weights() == {}  # type: ignore[operator]
    of_groups = {"column": "crowd", "values": ["x"]}
    module = build_weighting("oracle", rows_of(data, "crowd", dict), of_groups)
    assert module is not None
    assert module.named_weights() == {"x": 2.0, "y": 0.0}  # type: ignore[operator]


def test_python_raises_what_the_command_says(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weighting"):
        train(load_config("noisy_labels", ["weighting=nope", f"out={tmp_path}"]))
