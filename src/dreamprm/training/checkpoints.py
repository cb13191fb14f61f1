"""Checkpoints: a folder ``step-N`` each, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

STATE_FILE = "state.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes ``folder/step-N/state.pt`` and removes all but the ``keep`` newest checkpoints.

    The checkpoint is written beside its place and moved there when it is complete, so that one
    that is found is always whole.
    """
    target = folder / f"step-{step}"
    partial = folder / f".step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.save(state, partial / STATE_FILE)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for old in checkpoint_steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old}")
    return target


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of which there is a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in names if match)


def load_latest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint, on the CPU; None where there is none."""
    steps = checkpoint_steps(folder)
    if not steps:
        return None
    # weights_only: nothing in the file is executed.
    return torch.load(
        folder / f"step-{steps[-1]}" / STATE_FILE, map_location="cpu", weights_only=True
    )
