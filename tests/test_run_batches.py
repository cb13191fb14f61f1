"""The batches, problems and schedules that a run is built of, from its config."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from dreamprm.data.sources import load_data
from dreamprm.data.table import TrajectoryTable
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.batches import train_batches
from dreamprm.tasks.prm.task import PRMEngine, build_engine

TINY = (
    *("device=cpu", "steps=12", "unroll_steps=3", "hypergradient_batch_size=0"),
    *("data.synthetic.solutions=20", "data.synthetic.meta=24", "data.synthetic.questions=2"),
    *("model.tiny.width=32", "model.tiny.heads=2", "model.tiny.layers=1", "lower.warmup_steps=0"),
)


def build(folder: Path, *options: str) -> PRMEngine:
    config = load_config("demo", [*TINY, f"out={folder}", *options])
    return build_engine(config, load_data(config.data, folder, config.seed), folder / "run")


def sizes(stream: Any, count: int = 4) -> set[int]:
    return {len(batch["outcome"]) for batch in itertools.islice(iter(stream), count)}


ROWS = TrajectoryTable.of(
    [
        Trajectory(str(i), "large" if i < 90 else "small", "?", ("a",), step_labels=(1.0,))
        for i in range(100)
    ]
)


class Lines(list):  # type: ignore[type-arg]
    """Stands for an encoder: a solution is two rows, one of them of as many tokens as it says."""

    @staticmethod
    def rows(row: Trajectory) -> list[tuple[list[int], None]]:
        return [([0] * 3, None), ([0] * (10 + int(row.id) % 2), None)]


def batches(*options: str, count: int = 50, **parts: Any) -> list[list[str]]:
    """The solutions of the first batches, by their numbers."""
    config = load_config("demo", ["lower.batch_size=20", "lower.accumulate=2", *options])
    stream = train_batches(config, ROWS, Lines, **parts)  # type: ignore[arg-type]
    return [[row.id for row in batch] for batch in itertools.islice(iter(stream), count)]


def share_of_small(found: list[list[str]]) -> float:
    numbers = [int(name) for batch in found for name in batch]
    return sum(number >= 90 for number in numbers) / len(numbers)


def test_domains_are_sampled_as_the_config_says() -> None:
    balanced = batches()
    assert {len(batch) for batch in balanced} == {10}
    assert all(share_of_small([batch]) == 0.5 for batch in balanced)
    # 500 draws in whole epochs of 100.
    assert share_of_small(batches("data.sampling=proportional")) == 0.1
    # √10 / (√90 + √10) = 1/4, to within one in a block of 1,024.
    found = batches("data.sampling=temperature", "data.temperature=2", count=512)
    assert share_of_small(found) == pytest.approx(0.25, abs=1 / 1024)


@pytest.mark.parametrize(
    "options",
    [[], ["data.sampling=proportional", "lower.max_tokens=4096"]],
    ids=["drawn", "tokens"],
)
def test_the_order_is_a_function_of_the_seed(options: list[str]) -> None:
    first, again, other = (batches(*options, f"seed={seed}") for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_what_does_not_fit_is_not_drawn_and_a_domain_without_any_is_found_at_once() -> None:
    found = batches(fits=lambda row: int(row.id) % 2 == 0)
    assert all(int(name) % 2 == 0 for batch in found for name in batch)
    with pytest.raises(UserError, match="were drawn in the place of one that is too long"):
        batches(count=0, fits=lambda row: row.domain == "large")


def test_all_rows_of_a_solution_count_as_its_tokens() -> None:
    options = ("data.sampling=proportional", "data.max_tokens=11", "lower.max_tokens=22")
    assert all(len(batch) == 1 for batch in batches(*options))
    options = ("data.sampling=proportional", "data.max_tokens=11", "lower.max_tokens=21")
    with pytest.raises(UserError, match=r"'1' is 2 rows of at most 11 tokens, which .*=21 cannot"):
        batches(*options)


def test_micro_batches_share_a_batch_and_each_level_has_its_own_settings(tmp_path: Path) -> None:
    engine = build(
        tmp_path,
        *("lower.batch_size=24", "lower.accumulate=3", "lower.clip=0.5"),
        *("upper.batch_size=8", "upper.accumulate=2", "upper.clip=0.25", "upper.schedule=linear"),
    )
    (lower,), (upper,) = (p.train_data_loader for p in (engine.lower, engine.upper))
    assert (sizes(lower), sizes(upper)) == ({8}, {4})
    assert (engine.lower.config.gradient_accumulation, engine.lower.gradient_clipping) == (3, 0.5)
    assert (engine.upper.config.gradient_accumulation, engine.upper.gradient_clipping) == (2, 0.25)
    # Linear to zero over the steps of each level: 12 lower ones, 4 upper ones.
    for problem, steps in ((engine.lower, 12), (engine.upper, 4)):
        start = problem.optimizer.param_groups[0]["lr"]
        rates = []
        for _ in range(steps):
            problem.optimizer.step()
            problem.scheduler.step()
            rates.append(problem.optimizer.param_groups[0]["lr"] / start)
        assert rates[steps // 2 - 1] == pytest.approx(0.5, abs=0.1)
        assert rates[-1] == pytest.approx(0, abs=1e-9)
