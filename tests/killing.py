"""Kills a command with SIGKILL once its journal has so many lines."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm.cli import main
from dreamprm.models.reward_model import ProcessRewardModel


def killed(arguments: Sequence[str], partial: Path, lines: int) -> None:
    """Runs a command in another process, and kills it."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # a fork inherits no threads to share work with
        os._exit(main(list(arguments)))
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.read_bytes().count(b"\n") < lines:
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def spy_on_passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The solutions that go through a model from here on, by their number."""
    scored: list[str] = []
    batches: Callable[..., Any] = ProcessRewardModel.scored_batches

    def spy(*arguments: Any) -> Any:
        for batch, logits in batches(*arguments):
            scored.extend(map(str, batch.rows))
            yield batch, logits

    monkeypatch.setattr(ProcessRewardModel, "scored_batches", spy)
    return scored
