"""The Engine: early stopping, metrics where the run is, validation, checkpoints and resuming."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import betty.configs
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamprm.cli import main
from dreamprm.commands import doctor
from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.problems.base import Problem
from dreamprm.progress import progress_bar
from dreamprm.run_directory.checkpoints import checkpoint_steps
from dreamprm.run_directory.metrics import read_metrics
from tests.toy import toy


class Validating(ReweightingEngine):
    """Gives a metric that gets better at steps 2 and 4 and never again."""

    def validation(self) -> dict[str, float]:
        return {"error": {2: 1.0, 4: 0.5}.get(self.global_step, 0.7)}


def test_early_stopping_stops_and_stays_stopped(tmp_path: Path) -> None:
    def build() -> ReweightingEngine:
        return toy(
            steps=50,
            engine=Validating,
            valid_step=2,
            early_stopping=True,
            early_stopping_metric="error",
            early_stopping_tolerance=3,
            run_directory=tmp_path,
        )

    engine = build()
    engine.run()
    assert engine.global_step == 10
    again = build()
    assert again.resume()
    again.run()
    assert again.global_step == 10


def test_early_stopping_names_the_metrics_there_are() -> None:
    with pytest.raises(UserError, match=r"early stopping, 'loss', is not among .* error"):
        toy(engine=Validating, valid_step=2, early_stopping=True).run()


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_without_a_run_directory_validations_are_shown(
    level: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(level, logger="dreamprm")
    engine = toy(steps=5, engine=Validating, valid_step=2)
    engine.run()
    assert engine.validations == {2: {"error": 1.0}, 4: {"error": 0.5}, 5: {"error": 0.7}}
    expected = [
        "validation at step 2: error 1",
        "validation at step 4: error 0.5",
        "validation at step 5: error 0.7",
    ]
    logged = [record.getMessage() for record in caplog.records]
    printed = capsys.readouterr().out.splitlines()
    # Once each: by the log where it is listened to.
    assert (logged, printed) == ((expected, []) if level == logging.INFO else ([], expected))


def test_a_metric_that_is_no_number_stops_no_run_early() -> None:
    class Undefined(ReweightingEngine):
        def validation(self) -> dict[str, float]:
            return {"error": float("nan")}

    options = {"valid_step": 2, "early_stopping": True, "early_stopping_metric": "error"}
    message = "^step 2 of the run: the metric of early stopping, 'error', is nan"
    with pytest.raises(FloatingPointError, match=message):
        toy(engine=Undefined, **options).run()


def test_metrics_stand_in_the_run_directory(tmp_path: Path) -> None:
    toy(steps=10, engine=Validating, valid_step=5, log_every=5, run_directory=tmp_path).run()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [5, 5, 10, 10]
    names = {
        "regression/loss",
        "regression/unweighted_loss",
        "regression/learning_rate",
        "weighting/loss",
        "weighting/learning_rate",
        "weights/right",
        "weights/wrong",
    }
    assert set(rows[0]) == names | {"step"}
    assert rows[1] == {"step": 5, "validation/error": 0.7}
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == names | {"validation/error"}
    assert board.Tags()["images"] == ["weights"]
    for name in names:
        found = [event.value for event in board.Scalars(name)]
        assert found == pytest.approx([row[name] for row in rows if name in row])


def state(engine: ReweightingEngine) -> list[torch.Tensor]:
    return [p.detach() for problem in engine.problems for p in problem.module.parameters()]


@pytest.mark.parametrize("log_every", [1, 5])  # the checkpoint at step 12 is between two lines
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path: Path, log_every: int) -> None:
    whole = toy(steps=23, run_directory=tmp_path / "whole", log_every=log_every)
    whole.run()
    config: dict[str, Any] = {
        "run_directory": tmp_path / "cut",
        "log_every": log_every,
        "checkpoint_every": 4,
    }
    first = toy(steps=23, **config)
    step = first.train_step

    def crash() -> None:
        if first.global_step == 14:
            raise RuntimeError("power cut")
        step()

    first.train_step = crash  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        first.run()
    assert checkpoint_steps(tmp_path / "cut" / "checkpoints") == [8, 12]
    second = toy(steps=23, **config)
    assert second.resume()
    assert second.global_step == 12
    second.run()
    for a, b in zip(state(whole), state(second), strict=True):
        assert torch.equal(a, b)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


def metrics_of(folder: Path) -> list[bytes]:
    return (folder / "metrics.jsonl").read_bytes().splitlines()


def test_an_interrupt_ends_the_step_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    toy(steps=20, run_directory=whole).run()
    engine = toy(steps=20, run_directory=cut)
    step = engine.train_step

    def interrupted_step() -> None:
        if engine.global_step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        step()

    engine.train_step = interrupted_step  # type: ignore[method-assign]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.run()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoint_steps(cut / "checkpoints") == [7]
    again = toy(steps=20, run_directory=cut)
    assert again.resume()
    again.run()
    assert metrics_of(cut) == metrics_of(whole)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_leaves_a_checkpoint(tmp_path: Path, ignored: bool) -> None:
    """Twice, by the shell and by the terminal; nohup has it ignored, and that stays so."""
    engine = toy(steps=20, run_directory=tmp_path)
    step = engine.train_step

    def hung_up() -> None:
        if engine.global_step == 7:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
        step()

    engine.train_step = hung_up  # type: ignore[method-assign]
    deadly: list[int] = []
    handler = signal.SIG_IGN if ignored else lambda number, frame: deadly.append(number)
    before = signal.signal(signal.SIGHUP, handler)
    try:
        if ignored:
            engine.run()
        else:
            with pytest.raises(KeyboardInterrupt) as raised:
                engine.run()
            assert raised.value.args == (signal.SIGHUP,)
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not deadly
    assert checkpoint_steps(tmp_path / "checkpoints") == [20 if ignored else 7]


class Looking(ReweightingEngine):
    """Shows a bar at every validation."""

    def validation(self) -> dict[str, float]:
        progress_bar("looking", 2, "row").close()
        return {"loss": float(self.global_step)}


class Stream(io.StringIO):
    """A pipe whose reader ends after so many writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return len(text)


@pytest.mark.parametrize("writes", range(1, 12))
def test_a_run_that_nobody_watches_ends_with_a_checkpoint(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever its standard error breaks: there is no line too few when it is resumed."""
    parts: dict[str, Any] = {"steps": 8, "engine": Looking, "valid_step": 2, "log_every": 1}
    toy(run_directory=tmp_path / "whole", **parts).run()
    first = toy(run_directory=tmp_path / "cut", progress="learned", **parts)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Stream(writes))
        with pytest.raises(BrokenPipeError):
            first.run()
    assert checkpoint_steps(tmp_path / "cut" / "checkpoints") == [first.global_step]
    second = toy(run_directory=tmp_path / "cut", **parts)
    assert second.resume()
    second.run()
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")


def test_elsewhere_a_bar_that_nobody_watches_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(0))
    with pytest.raises(BrokenPipeError):
        progress_bar("scoring", 2, "row")


@pytest.mark.parametrize(("number", "status"), [(None, 130), (2, 130), (15, 143), (1, 129)])
def test_the_exit_status_names_the_signal(
    number: int | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(options: Any) -> None:
        raise KeyboardInterrupt(*([] if number is None else [number]))

    monkeypatch.setattr(sys, "stderr", Stream(0))  # as of a terminal that is gone
    monkeypatch.setattr(doctor, "run", interrupted)
    assert main(["doctor"]) == status


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert not toy(run_directory=tmp_path).resume()
    assert not toy().resume()


def test_a_checkpoint_of_other_problems_is_refused() -> None:
    engine = toy()
    other = engine.state_dict()
    other["problems"]["prm"] = other["problems"].pop("regression")
    with pytest.raises(UserError, match=r"holds the problems \['prm', 'weighting'\]"):
        engine.load_state_dict(other)


def test_a_half_written_metrics_line_is_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"step": 1, "a": 2.0}) + "\n", '{"step": 2, "a"']
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2.0}]


@pytest.mark.parametrize(
    "options",
    [{"early_stopping_mode": "up"}, {"log_every": 0}, {"valid_step": 0}],
)
def test_wrong_engine_configs_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        EngineConfig(**options)


@pytest.mark.parametrize("found", ["fsdp", "gpu"])
def test_a_device_that_is_not_there_is_named_as_the_config_names_it(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^device.* is '{found}'"):
        EngineConfig(strategy=found)


def test_dependencies_can_be_set_anew() -> None:
    engine = toy(steps=2)
    whole = {"u2l": {engine.upper: [engine.lower]}, "l2u": {engine.lower: [engine.upper]}}
    engine.set_dependency({"u2l": {}, "l2u": {}})
    engine.set_dependency(whole)
    engine.run()
    assert (engine.lower.count, engine.upper.count) == (2, 1)


def test_bettys_own_engine_config_is_refused() -> None:
    lower = toy().lower
    with pytest.raises(UserError, match=r"expected a dreamprm\.engines"):
        Engine([lower], betty.configs.EngineConfig(), {"u2l": {}, "l2u": {}})  # type: ignore


@pytest.mark.parametrize("name", ["metrics", "module", "regression"])
def test_names_that_are_taken_are_refused(name: str) -> None:
    module = torch.nn.Linear(3, 1)
    parts = {"module": module, "optimizer": torch.optim.SGD(module.parameters(), lr=0.1)}
    problems = [Problem(name, **parts), Problem("regression", **parts)]
    with pytest.raises(UserError, match=f"a problem is named '{name}'"):
        Engine(problems, EngineConfig(strategy="cpu"), {"u2l": {}, "l2u": {}})
