"""Batches filled by tokens: full, of one length, every item once an epoch, resumable."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dreamprm.data.batches import BatchStream
from dreamprm.data.sources import load_data
from dreamprm.data.token_batches import TokenBatchStream
from dreamprm.errors import UserError
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.task import build_engine

LENGTHS = np.random.default_rng(0).geometric(1 / 60, size=1000).clip(1, 400).tolist()


def stream(seed: int = 0, batch_size: int = 100) -> TokenBatchStream:
    return TokenBatchStream(range(1000), LENGTHS, 800, batch_size, list, seed)


def padding(batches: list[list[int]]) -> float:
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)
    return 1 - sum(LENGTHS[i] for batch in batches for i in batch) / padded


def test_every_epoch_has_every_item_once_in_batches_that_fit() -> None:
    batches = iter(stream())
    firsts = []
    for _ in range(3):
        seen: list[int] = []
        while len(seen) < 1000:
            batch = next(batches)
            assert len(batch) * max(LENGTHS[i] for i in batch) <= 800
            assert len(batch) <= 100
            firsts += [batch] if not seen else []
            seen += batch
        assert sorted(seen) == list(range(1000))
    assert len(set(map(tuple, firsts))) == 3
    assert max(map(len, itertools.islice(stream(batch_size=5), 500))) == 5


def test_there_is_little_padding() -> None:
    one = stream()
    batches = list(itertools.islice(one, len(one._plan(0))))
    found = padding(batches)
    assert one.padding() == pytest.approx(found)
    size = round(1000 / len(batches))
    drawn = list(itertools.islice(BatchStream(range(1000), size, list, 0), 1000 // size))
    # Lengths like these, exponential: half of a batch as drawn is padding.
    assert found < 0.1 < 0.5 < padding(drawn)


def test_the_order_is_a_function_of_seed_and_position() -> None:
    whole = list(itertools.islice(stream(3), 300))
    first = stream(3)
    iterator = iter(first)
    assert [next(iterator) for _ in range(170)] == whole[:170]
    second = stream(3)
    second.load_state_dict(first.state_dict())
    assert list(itertools.islice(second, 130)) == whole[170:]
    assert list(itertools.islice(stream(4), 5)) != whole[:5]
    last = [item for batch in whole[167:170] for item in batch]
    recent = first.recent(3, len(last) // 2)
    drawn = [item for batch in recent for item in batch]
    assert len(drawn) == len(set(drawn)) == len(last) // 2
    assert set(drawn) <= set(last)
    # Of every length that there is, and as full as any batch.
    assert all(set(batch) & set(drawn) for batch in whole[167:170])
    assert all(len(batch) * max(LENGTHS[i] for i in batch) <= 800 for batch in recent)
    assert second.recent(3, 4) != first.recent(3, 4)


def test_an_item_that_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="an item has 9 tokens, expected at most 8"):
        TokenBatchStream([0], [9], 8, 1, list, 0)


def test_in_a_run(tmp_path: Path) -> None:
    base = [
        *("device=cpu", "steps=2", "unroll_steps=1", f"out={tmp_path / 'run'}"),
        *("data.synthetic.solutions=20", "data.synthetic.meta=8", "data.synthetic.questions=2"),
        *("lower.batch_size=16", "upper.batch_size=8", "model.tiny.width=32"),
        *("model.tiny.heads=2", "lower.warmup_steps=0", "lower.accumulate=2"),
    ]
    with pytest.raises(UserError, match=r"data\.sampling=proportional"):
        load_config("demo", [*base, "lower.max_tokens=4096"])
    base.append("data.sampling=proportional")
    with pytest.raises(UserError, match=r"at least data\.max_tokens, 2048"):
        load_config("demo", [*base, "lower.max_tokens=2047"])
    with pytest.raises(UserError, match=r"upper\.max_tokens"):
        load_config("demo", [*base, "upper.max_tokens=4096"])
    config = load_config("demo", [*base, "data.max_tokens=100", "lower.max_tokens=200"])
    engine = build_engine(config, load_data(config.data, tmp_path, 0), tmp_path / "run")
    engine.run()
    assert len(engine.lower.batches) == 2
    for batch in engine.lower.batches:
        assert batch["inputs"]["input_ids"].numel() <= 200
        assert len(batch["domain"]) <= 8


def test_every_prefix_of_a_solution_counts(tmp_path: Path) -> None:
    base = ["steps=2", "unroll_steps=1", "device=cpu", "data.sampling=proportional"]
    base += ["data.synthetic.solutions=10", "data.synthetic.meta=8", "data.synthetic.questions=2"]
    base += ["model.readout=prefix", "data.max_tokens=100", f"out={tmp_path}"]
    config = load_config("demo", [*base, "lower.max_tokens=600"])
    data = load_data(config.data, tmp_path, 0)
    engine = build_engine(config, data, tmp_path / "run")
    engine.run()
    ids = [batch["inputs"]["input_ids"] for batch in engine.lower.batches]
    assert all(200 < x.numel() <= 600 for x in ids)
    config = load_config("demo", [*base, "lower.max_tokens=100"])
    with pytest.raises(UserError, match=r"rows of at most \d+ tokens, which lower.max_tokens=100"):
        build_engine(config, data, tmp_path / "other")
