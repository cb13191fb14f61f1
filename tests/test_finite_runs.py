"""Runs on the command line that meet a number that is not finite: one line, exit status 1."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm.cli import main
from dreamprm.problems.finite import need_finite_state
from dreamprm.problems.prm import DomainWeighting
from dreamprm.run_directory.checkpoints import checkpoint_steps
from dreamprm.run_directory.metrics import MetricsLog, read_metrics
from dreamprm.weighting.groups import DomainTable
from tests.small_demo import SMALL_DEMO
from tests.test_finite import INF, NAN, steep
from tests.toy import toy

TINY = [
    "steps=4",
    "unroll_steps=2",
    "log_every=1",
    "validate_every=4",
    "checkpoint_every=1",
    "baseline=false",
    *SMALL_DEMO,
]


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def fails(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a run that ends with exit status 1, and leaves nothing that is not finite."""
    assert main(["demo", "--out", str(run), *TINY]) == 1
    (line,) = (s for s in capsys.readouterr().err.splitlines() if s.startswith("dreamprm: "))
    assert not {"weights.json", "summary.json"} & {path.name for path in run.iterdir()}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        strictly(text)
    for step in checkpoint_steps(run / "checkpoints"):
        state = torch.load(run / "checkpoints" / f"step-{step}" / "state.pt", weights_only=True)
        need_finite_state("the checkpoint", state["problems"], skip=("batches",))
    return line


def test_a_run_ends_with_one_line_and_resumes_from_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last step, which is a checkpoint step, in the hypergradient's v."""
    assert main(["demo", "--out", str(tmp_path / "whole"), *TINY]) == 0
    step: Callable[..., Any] = DomainWeighting.training_step

    def poisoned(self: DomainWeighting, batch: dict[str, Any]) -> Any:
        found = step(self, batch)
        if self.count == 2:
            found["loss"] = found["loss"] + steep(self.prm.module.readout.weight)
        return found

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(DomainWeighting, "training_step", poisoned)
        line = fails(run, capsys)
    assert re.fullmatch(
        r"dreamprm: step 4 of the run: step 2 of problem 'weighting': its gradient at 'prm' is nan "
        r"in 'readout\.weight'; the batch: (meta-\d+ \(meta\), ){7}meta-\d+ \(meta\) and 8 "
        r"more; the newest checkpoint, .*run/checkpoints/step-3, is older",
        line,
    )
    assert not (run / "model").exists()
    assert main(["demo", "--out", str(run), *TINY, "--resume"]) == 0
    for name in ("weights.json", "metrics.jsonl"):
        assert (run / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_weights_that_are_not_finite_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite α may give them: 0 / 0 where every softplus is 0."""
    monkeypatch.setattr(DomainTable, "named_weights", lambda self: {"a": 1.0, "b": NAN})
    line = fails(tmp_path / "run", capsys)
    assert line.endswith("weights.json would not be finite: 'b' is nan")


def test_what_json_has_no_number_for_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricsLog(tmp_path)
    with caplog.at_level(logging.WARNING, logger="dreamprm"):
        for step in (1, 2):
            metrics.write(step, {"auc": NAN, "loss": 0.5, "ratio": INF if step == 2 else 1.0})
    metrics.close()
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.5, "ratio": 1.0},
        {"step": 2, "loss": 0.5},
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "auc is nan at step 1: what is not finite is left out of metrics.jsonl",
        "ratio is inf at step 2: what is not finite is left out of metrics.jsonl",
    ]


def test_a_kill_while_the_metrics_are_cut_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"step": step, "loss": 0.5} for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            MetricsLog(tmp_path, after_step=6)
    assert read_metrics(tmp_path) == rows
    MetricsLog(tmp_path, after_step=6).close()
    assert read_metrics(tmp_path) == rows[:6]


def test_no_checkpoint_is_ahead_of_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    flush = MetricsLog.flush

    def noted(self: MetricsLog) -> None:
        flush(self)
        assert not checkpoint_steps(tmp_path / "checkpoints")[len(flushed) :]
        flushed.append(len(read_metrics(tmp_path)))

    monkeypatch.setattr(MetricsLog, "flush", noted)
    toy(steps=6, run_directory=tmp_path, log_every=1, checkpoint_every=3, valid_step=99).run()
    assert flushed == [3, 6]
    assert checkpoint_steps(tmp_path / "checkpoints") == [3, 6]
