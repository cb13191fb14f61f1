"""Data on disk is read as data in memory are: same rows, same batches, same errors."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from dreamprm.data.batches import BatchStream
from dreamprm.data.config import DataConfig
from dreamprm.data.formats import load_trajectories, save_trajectories
from dreamprm.data.rows import read_rows
from dreamprm.data.sources import RunData, load_data, usable_train
from dreamprm.data.stored import cache_folder, open_stored
from dreamprm.data.table import TrajectoryTable
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.task import build_engine
from tests.shared import SHARED, needs_shared


def solutions(count: int, **change: Any) -> list[Trajectory]:
    """Solutions of several domains, some of them without labels, outcome or steps."""
    return [
        replace(
            Trajectory(
                id=f"{number}",
                domain="abc"[number % 7 % 3],
                question=f"größer than {number // 4}?",
                steps=tuple(f"Step {s} of {number}" for s in range(number % 5)),
                step_labels=None if number % 3 else (0.5,) * (number % 5),
                outcome=(True, False, None)[number % 11 % 3],
                answer=str(number),
            ),
            **change,
        )
        for number in range(count)
    ]


def config(*paths: Path, **keys: Any) -> DataConfig:
    return DataConfig(train=[str(path) for path in paths], **keys)


def test_rows_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    save_trajectories(path, solutions(50))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    (tmp_path / "x.json").write_text(json.dumps(records, indent=2, ensure_ascii=False))
    Dataset.from_list(records).to_parquet(tmp_path / "x.parquet")
    crlf = tmp_path / "crlf.jsonl"
    crlf.write_bytes(b"\xef\xbb\xbf\r\n" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    expected = load_trajectories(path)
    for name in ("x.jsonl", "x.json", "x.parquet", "crlf.jsonl"):
        table = open_stored(tmp_path / name, "canonical", "require")
        assert list(table) == expected
        assert [table[i] for i in (7, 0, -1, 49)] == [expected[i] for i in (7, 0, -1, 49)]
        assert list(table[10:20:3]) == expected[10:20:3]
        in_memory = TrajectoryTable.of(expected).columns
        for key, array in table.columns.arrays().items():
            if key != "domain":
                assert (array == in_memory.arrays()[key]).all(), key
        assert table.domains == ["a", "b", "c"]
        assert [table.domains[code] for code in table.groups()] == [row.domain for row in expected]
    with pytest.raises(IndexError):
        table[50]


def test_a_large_array_is_read_in_pieces(tmp_path: Path) -> None:
    records = [{"id": f"{n}", "text": "x" * (n * 37 % 3000)} for n in range(300)]
    (tmp_path / "x.json").write_text(json.dumps(records, indent=1))
    assert (tmp_path / "x.json").stat().st_size > 4 * 2**16
    assert [row for _, row in read_rows(tmp_path / "x.json")] == records
    broken = json.dumps(records, indent=1).replace('"id": "250"', '"id" "250"')
    (tmp_path / "x.json").write_text(broken)
    line = broken[: broken.index('"id" "250"')].count("\n") + 1
    with pytest.raises(UserError, match=rf"Expecting ':' delimiter .*\(line {line}\)"):
        list(read_rows(tmp_path / "x.json"))


def test_the_index_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "x.jsonl"

    def indexes() -> list[str]:
        return sorted(folder.name for folder in (cache_folder() / "index").iterdir())

    save_trajectories(path, solutions(5))
    before = open_stored(path, "canonical", "require")
    (first,) = indexes()
    inode = (cache_folder() / "index" / first).stat().st_ino
    assert len(open_stored(path, "canonical", "require")) == 5
    assert (cache_folder() / "index" / first).stat().st_ino == inode
    save_trajectories(path, solutions(9))
    assert len(open_stored(path, "canonical", "require")) == 9
    assert len(indexes()) == 1
    assert indexes() != [first]
    # The file that was replaced is read on by the run that had it open.
    assert list(before) == solutions(5)
    # One that is written over under a run is said, not misread.
    now = open_stored(path, "canonical", "require")
    with path.open("r+") as file:
        file.write("x" * 200)
    with pytest.raises(UserError, match="has changed since the run began"):
        list(now)


def test_lines_of_a_solution_each_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path / "cache"))
    row = {"prompt": "q?", "steps": ["a <<1+1=2>>", "b"], "outcome": True, "domain": "d"}
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row | {"id": f"{n}"}) + "\n" for n in range(4)))
    table = open_stored(path, "gsm8k-solutions", "require")
    assert list(table) == load_trajectories(path, "gsm8k-solutions")
    assert table[3].steps == ("a", "b")
    assert not list(cache_folder().rglob("rows.jsonl"))
    # An array is converted, and so are rows that are not a solution each.
    (tmp_path / "x.json").write_text(json.dumps([row | {"id": "0"}]))
    assert list(open_stored(tmp_path / "x.json", "auto", "require")) == list(table)[:1]
    assert len(list(cache_folder().rglob("rows.jsonl"))) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trajectories(tmp_path / "x.jsonl", solutions(5))
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path / "x.jsonl"))
    with pytest.raises(UserError, match=r"cannot write an index to .*DREAMPRM_CACHE"):
        open_stored(tmp_path / "x.jsonl", "canonical", "require")


def test_images_on_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    rows = solutions(3, images=(tmp_path / "1.png",))
    save_trajectories(tmp_path / "x.jsonl", rows)
    assert list(open_stored(tmp_path / "x.jsonl", "canonical", "require")) == rows
    ignored = open_stored(tmp_path / "x.jsonl", "canonical", "ignore")
    assert [row.images for row in ignored] == [()] * 3
    rows = solutions(3, images=(tmp_path / "1.png", tmp_path / "2.png"))
    save_trajectories(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match=r"x\.jsonl:1: there is no image .*2\.png"):
        open_stored(tmp_path / "x.jsonl", "canonical", "require")
    for _ in range(2):  # the first time, and with the index there
        caplog.clear()
        partly = open_stored(tmp_path / "x.jsonl", "canonical", "skip_missing")
        assert [row.images for row in partly] == [(tmp_path / "1.png",)] * 3
        assert "images of 3 of 3 rows are missing" in caplog.text


def order(data: RunData, count: int = 40) -> list[list[Trajectory]]:
    rows = usable_train(data.train, None)
    return list(itertools.islice(BatchStream(rows, 7, list, 3, rows.groups()), count))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"labels": "outcome"},
        {"meta_share": 0.2, "test_share": 0.3, "labels": "outcome"},
    ],
)
def test_runs_on_disk_and_in_memory_are_the_same(tmp_path: Path, keys: dict[str, Any]) -> None:
    paths = [tmp_path / f"part-{part}.jsonl" for part in (1, 2, 3)]
    for path, rows in zip(paths, (solutions(90)[i : i + 30] for i in (0, 30, 60)), strict=True):
        save_trajectories(path, rows)
    in_memory = load_data(config(*paths, streaming="never", **keys), tmp_path, seed=1)
    on_disk = load_data(config(*paths, streaming="always", **keys), tmp_path, seed=1)
    assert (in_memory.streamed, on_disk.streamed) == (False, True)
    assert list(on_disk.train) == list(in_memory.train)
    assert on_disk.meta == in_memory.meta
    assert on_disk.test == in_memory.test
    assert order(on_disk) == order(in_memory)
    pattern = load_data(config(tmp_path / "part-*.jsonl", **keys), tmp_path, seed=1)
    assert list(pattern.train) == list(in_memory.train)


def test_the_control_on_disk(tmp_path: Path) -> None:
    rows = solutions(60, step_labels=None)
    save_trajectories(tmp_path / "x.jsonl", rows)
    both = [
        load_data(
            config(tmp_path / "x.jsonl", streaming=streaming, shuffled_copy="a", labels="outcome"),
            tmp_path,
            seed=1,
        )
        for streaming in ("never", "always")
    ]
    assert list(both[0].train) == list(both[1].train)
    assert both[1].domains == ["a", "a-shuffled", "b", "c"]
    assert order(both[0]) == order(both[1])


def test_the_default_follows_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trajectories(tmp_path / "x.jsonl", solutions(5))
    assert not load_data(config(tmp_path / "x.jsonl"), tmp_path, 0).streamed
    monkeypatch.setattr("dreamprm.data.sources.STREAM_ABOVE", 100)
    assert load_data(config(tmp_path / "x.jsonl"), tmp_path, 0).streamed


@needs_shared
@pytest.mark.parametrize(
    ("name", "format"), [("mathv", "math-vision"), ("gsm8k_solutions.jsonl", "gsm8k-solutions")]
)
def test_other_formats_on_disk(name: str, format: str) -> None:
    expected = load_trajectories(SHARED / name, format)
    for _ in range(2):
        assert list(open_stored(SHARED / name, format, "require")) == expected


def repository(folder: Path) -> Path:
    """A data set as the hub has them: a folder of files and a card that names the splits."""
    (folder / "data").mkdir(parents=True)
    for split, rows in {"train": solutions(6), "test": solutions(2)}.items():
        save_trajectories(folder / "data" / f"{split}.jsonl", rows)
    card = "\n".join(
        ["---", "configs:", "- config_name: default", "  data_files:"]
        + [f"  - split: {s}\n    path: data/{s}.jsonl" for s in ("train", "test")]
        + ["---", ""]
    )
    (folder / "README.md").write_text(card)
    return folder


def test_data_sets_of_the_hub(tmp_path: Path) -> None:
    name = f"hub:{repository(tmp_path / 'set')}"
    for streaming in ("never", "always"):
        data = load_data(DataConfig(train=[name], streaming=streaming), tmp_path, 0)
        assert [row.id for row in data.train] == [f"{n}" for n in range(6)]
        assert list(data.train) == solutions(6)
    assert len(load_trajectories(f"{name}:test")) == 2
    with pytest.raises(UserError, match="split 'dev': Unknown split"):
        load_trajectories(f"{name}:dev")
    with pytest.raises(UserError, match="cannot have hub:a/b/c, split 'train'"):
        load_trajectories("hub:a/b/c")


def test_pictures_within_a_data_set_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "id": "a"}) + "\n")
    with pytest.raises(UserError, match="'image' holds pictures, expected paths"):
        load_trajectories(f"hub:{tmp_path}")


# Sampling


def groups_of(sizes: dict[str, int]) -> list[str]:
    return [name for name, size in sizes.items() for _ in range(size)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 1e9])
def test_shares_by_temperature(temperature: float) -> None:
    sizes = {"a": 10, "b": 300, "c": 2000}
    groups = groups_of(sizes)
    stream = BatchStream(range(2310), 16, list, 5, groups, temperature)
    count = 640  # batches: 10 blocks of 1,024 draws
    drawn = [groups[i] for position in range(count) for i in stream.indices(position)]
    powers = {name: size ** (1 / temperature) for name, size in sizes.items()}
    for name, power in powers.items():
        expected = 16 * count * power / sum(powers.values())
        # In every block a group has its share to within one.
        assert abs(drawn.count(name) - expected) <= 10
    # Without replacement within an epoch of each group.
    for name, size in sizes.items():
        first = [i for p in range(count) for i in stream.indices(p) if groups[i] == name][:size]
        assert len(set(first)) == len(first)


def test_temperature_is_a_function_of_seed_and_position() -> None:
    groups = groups_of({"a": 10, "b": 300})

    def stream(seed: int = 1) -> BatchStream:
        return BatchStream(range(310), 9, list, seed, groups, 2.0)

    whole = list(itertools.islice(stream(), 900))
    first = stream()
    assert list(itertools.islice(first, 500)) == whole[:500]
    resumed = stream()
    resumed.load_state_dict(first.state_dict())
    assert list(itertools.islice(resumed, 400)) == whole[500:]
    assert stream(2).indices(0) != stream(1).indices(0)
    assert list(itertools.chain(*resumed.recent(2, 18))) == whole[898] + whole[899]


def test_balanced_and_proportional_orders_have_not_changed() -> None:
    """As drawn before there was sampling by temperature."""
    groups = [["b", "a", "c"][n % 7 % 3] for n in range(20)]
    balanced = BatchStream(range(20), 7, list, 3, groups)
    assert [balanced.indices(i) for i in range(3)] == [
        [8, 6, 16, 18, 3, 2, 15],
        [10, 5, 4, 0, 9, 11, 13],
        [12, 1, 17, 19, 11, 14, 9],
    ]
    proportional = BatchStream(range(20), 7, list, 3)
    assert [proportional.indices(i) for i in range(3)] == [
        [16, 12, 18, 8, 3, 13, 15],
        [10, 6, 1, 2, 11, 17, 0],
        [14, 9, 4, 7, 5, 19, 16],
    ]


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_what_does_not_fit_is_replaced_and_the_order_kept(temperature: float | None) -> None:
    groups = groups_of({"a": 20, "b": 100})
    asked: list[int] = []

    def fits(item: int) -> bool:
        asked.append(item)
        return item % 4 != 0

    def stream() -> BatchStream:
        return BatchStream(range(120), 8, list, 1, groups, temperature, fits)

    one = stream()
    whole = list(itertools.islice(one, 100))
    assert all(item % 4 for batch in whole for item in batch)
    assert sorted(asked) == list(range(120))  # each once, however often drawn
    assert one.left_out == 30
    without = BatchStream(range(120), 8, list, 1, groups, temperature)
    for batch, plain in zip(whole, itertools.islice(without, 100), strict=True):
        for item, before in zip(batch, plain, strict=True):
            assert groups[item] == groups[before]
            assert item == before or before % 4 == 0
    resumed = stream()
    resumed.load_state_dict({"position": 60})
    assert list(itertools.islice(resumed, 40)) == whole[60:]
    # 400 draws, or some 310 by temperature, of 75 items that fit: 4 each in turn and 100 at
    # random. By chance one has 8 of these 1.3 on average with a probability below 1 in 1,000.
    counts = np.bincount([i for batch in whole for i in batch], minlength=120)[20:]
    assert counts[counts > 0].min() >= 3
    assert counts.max() <= 13
    nothing = BatchStream(range(3), 2, list, 1, fits=lambda item: False)
    with pytest.raises(UserError, match=r"raise data\.max_tokens"):
        nothing.indices(0)


def test_sampling_is_checked_and_used(tmp_path: Path) -> None:
    small = [
        *("steps=2", "unroll_steps=1", "device=cpu", "model.backbone=tiny-qwen2"),
        *("model.tiny.width=32", "model.tiny.heads=2", "lower.learning_rate=1e-3"),
        *("lower.batch_size=32", "upper.learning_rate=0.1", "upper.batch_size=4"),
        *(f"out={tmp_path / 'run'}", "weighting=uniform"),
    ]
    path = tmp_path / "c.yaml"
    path.write_text("{}\n")

    def load(*more: str) -> Any:
        return load_config(str(path), [*small, *more])

    with pytest.raises(UserError, match="did you mean 'balanced'"):
        load("data.sampling=balance")
    with pytest.raises(UserError, match="the one needs the other"):
        load("data.sampling=temperature")
    with pytest.raises(UserError, match="the one needs the other"):
        load("data.temperature=2")
    with pytest.raises(UserError, match=r"data\.temperature is 0\.0, expected more than 0"):
        load("data.sampling=temperature", "data.temperature=0")
    rows = [
        Trajectory(f"{n}", "big" if n else "small", "q", ("s",), step_labels=(1.0,))
        for n in range(257)
    ]
    data = RunData(TrajectoryTable.of(rows), [], [])
    shares = {}
    for sampling in ("balanced", "proportional", "temperature"):
        more = ["data.temperature=2"] if sampling == "temperature" else []
        run = load(f"data.sampling={sampling}", *more)
        (loader,) = build_engine(run, data, tmp_path / "run").lower.train_data_loader
        drawn = [i for position in range(32) for i in loader.indices(position)]
        shares[sampling] = sum(i == 0 for i in drawn) / len(drawn)
    # 1 of 257; 1 of 2; 1 to the square root of 256. 1,024 draws, without replacement.
    assert shares["balanced"] == 0.5
    assert 3 / 1024 <= shares["proportional"] <= 5 / 1024
    assert abs(shares["temperature"] - 1 / 17) <= 1 / 1024


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Drawing batches from a file of 50 MB takes less than half of that."""
    script = """
import resource, sys
from pathlib import Path
from dreamprm.data.config import DataConfig
from dreamprm.data.batches import BatchStream
from dreamprm.data.sources import load_data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = load_data(DataConfig(train=[sys.argv[1]], streaming="always"), Path("."), 0)
stream = iter(BatchStream(data.train, 64, len, 0, data.train.groups()))
for _ in range(20):
    next(stream)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    path = tmp_path / "x.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            row = {"id": f"{number}", "domain": "ab"[number % 2], "question": "q" * 2000}
            file.write(json.dumps(row | {"steps": ["s" * 500], "step_labels": [1]}) + "\n")
    grown = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"DREAMPRM_CACHE": str(tmp_path / "cache")},
    )
    assert path.stat().st_size > 50e6
    assert int(grown.stdout) * 1024 < 25e6
