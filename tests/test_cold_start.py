"""A cold start: plain steps before the bi-level ones, whatever weighs and whatever interrupts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm import load_config
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.run_directory.opening import open_run
from dreamprm.tasks.noisy_labels import build

COLD, STEPS = 12, 24
WORDS = [f"steps={STEPS}", f"cold_start={COLD}", "unroll_steps=2", "upper.schedule=cosine"]


class Recorded(ReweightingEngine):
    """Keeps the loss and the weights after every step."""

    losses: list[float]
    seen: list[dict[str, float]]

    def train_step(self) -> None:
        super().train_step()
        self.losses.append(self.lower.stats["loss"])
        self.seen.append(self.weights())


def engine(folder: Path, *words: str) -> Any:
    """That of a run on the noisy digits, which writes nothing."""
    config = load_config("noisy_labels", [*WORDS, *words, f"out={folder}/run"])
    with open_run(Path(config.out), config, resume=False, overwrite=True) as run:
        made = build(config, run).engine(config, Path(config.out))
    made.config.progress = made.config.run_directory = None
    made.__class__ = Recorded
    made.losses, made.seen = [], []
    return made


def until(made: Any, step: int) -> Any:
    made.train_iters = step
    made.run()
    return made


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


KINDS = [
    ("weighting=domain_table",),
    ("weighting=instance_network", "hypergradient=darts", "fidelity.every=4"),
    ("weighting=domain_table", "hypergradient=unrolled"),
    ("weighting=instance_table", "hypergradient=sama"),
    ("weighting=worst_group",),
]


@pytest.mark.parametrize("words", KINDS, ids=" ".join)
def test_plain_steps_come_first_and_a_resumed_run_ends_the_same(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    whole = until(engine(tmp_path, *words), STEPS)
    plain = until(engine(tmp_path, "weighting=uniform"), STEPS)
    assert whole.losses[:COLD] == plain.losses[:COLD]
    assert whole.losses[COLD + 2 :] != plain.losses[COLD + 2 :]
    if whole.seen[0]:
        assert list(whole.seen[0].values()) == pytest.approx([1.0] * 6)
        assert all(each == whole.seen[0] for each in whole.seen[:COLD])
        assert len(set(whole.seen[-1].values())) > 1
    if whole.upper is not None:
        assert whole.upper.count == (STEPS - COLD) // 2
    for cut in (COLD - 3, COLD, COLD + 3):
        state = copy.deepcopy(until(engine(tmp_path, *words), cut).state_dict())
        again = engine(tmp_path, *words)
        again.load_state_dict(state)
        until(again, STEPS)
        assert equal(again.state_dict(), whole.state_dict())


@pytest.mark.parametrize("method", ["unrolled", "identity", "sama"])
def test_a_cold_start_may_end_between_two_upper_steps(method: str, tmp_path: Path) -> None:
    made = until(engine(tmp_path, "cold_start=13", f"hypergradient={method}"), STEPS)
    assert made.upper.count == STEPS // 2 - 13 // 2
    assert made.seen[-1] != made.seen[0]


def test_the_upper_schedule_ends_with_the_run(tmp_path: Path) -> None:
    for cold in (0, COLD, 7):
        made = until(engine(tmp_path, f"cold_start={cold}"), STEPS)
        assert made.upper.count == STEPS // 2 - cold // 2
        assert made.upper.scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cold", [24, 25])
def test_a_cold_start_of_all_steps_is_refused(cold: int) -> None:
    words = [*WORDS, f"cold_start={cold}"]
    for weighting in ("domain_table", "oracle"):
        with pytest.raises(UserError, match=f"cold_start {cold}: {weighting} would never count"):
            load_config("noisy_labels", [*words, f"weighting={weighting}"])
    with pytest.raises(UserError, match="cold_start 23 and unroll_steps 20: the upper"):
        load_config("noisy_labels", [*WORDS, "cold_start=23", "unroll_steps=20"])
    assert load_config("noisy_labels", [*words, "weighting=uniform"]).upper_steps == 0
    with pytest.raises(UserError, match="cold_start is -1"):
        load_config("noisy_labels", [*WORDS, "cold_start=-1"])
