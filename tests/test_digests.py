"""The digests of a run's data: any change of what the data hold shows in them, and no move does."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamprm.data import digests
from dreamprm.data.config import DataConfig, SyntheticConfig
from dreamprm.data.digests import Contents
from dreamprm.data.formats import (
    load_questions,
    load_trajectories,
    save_questions,
    save_trajectories,
)
from dreamprm.data.sources import load_data
from dreamprm.data.synthetic import draw_synthetic
from dreamprm.data.trajectory import SelectionQuestion, Trajectory

TRAIN, META, TEST = "training data", "meta set", "test set"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw_synthetic(tmp_path / "data", {"a": "clean"}, 6, 4, 3, 2, 0).save(tmp_path / "data")
    return tmp_path / "data"


def found(data: Path, streaming: str = "never", **keys: Any) -> dict[str, str]:
    files = {"train": "train-a", "meta": "meta", "test": "test"}
    named = {key: [str(data / f"{name}.jsonl")] for key, name in files.items()}
    config = DataConfig(**named, streaming=streaming, **keys)
    return load_data(config, data, 0).digests


def rows(change: Callable[[Trajectory], Trajectory], name: str) -> Callable[[Path], None]:
    def apply(data: Path) -> None:
        path = data / f"{name}.jsonl"
        first, *rest = load_trajectories(path)
        save_trajectories(path, [change(first), *rest])

    return apply


def question(change: Callable[[SelectionQuestion], SelectionQuestion]) -> Callable[[Path], None]:
    def apply(data: Path) -> None:
        first, *rest = load_questions(data / "test.jsonl")
        save_questions(data / "test.jsonl", [change(first), *rest])

    return apply


def candidate(**change: Any) -> Callable[[Path], None]:
    def apply(found: SelectionQuestion) -> SelectionQuestion:
        first, *rest = found.candidates
        return replace(found, candidates=(replace(first, **change), *rest))

    return question(apply)


def image(of: str) -> Callable[[Path], None]:
    """Another image in the place of the first row's: as many bytes, and the same time of change."""

    def apply(data: Path) -> None:
        path = data / f"{of}.jsonl"
        row: Any = (load_questions if of == "test" else load_trajectories)(path)[0]
        file = row.images[0]
        before = file.stat()
        file.write_bytes(b"\0" * before.st_size)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return apply


def swapped(data: Path) -> None:
    """The images of the first two questions of the test set, one for the other."""
    first, second, *rest = load_questions(data / "test.jsonl")
    assert first.images != second.images
    pair = [replace(first, images=second.images), replace(second, images=first.images)]
    save_questions(data / "test.jsonl", [*pair, *rest])


def inverted(row: Trajectory) -> Trajectory:
    return replace(row, step_labels=tuple(1 - (p or 0.0) for p in row.step_labels or ()))


def judged_otherwise(found: SelectionQuestion) -> SelectionQuestion:
    candidates = (replace(each, correct=not each.correct) for each in found.candidates)
    return replace(found, candidates=tuple(candidates))


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "labels inverted": (rows(inverted, "train-a"), {TRAIN}),
    "steps reversed": (rows(lambda r: replace(r, steps=r.steps[::-1]), "train-a"), {TRAIN}),
    "outcome": (rows(lambda r: replace(r, outcome=not r.outcome), "train-a"), {TRAIN}),
    "no outcome": (rows(lambda r: replace(r, outcome=None), "train-a"), {TRAIN}),
    "answer": (rows(lambda r: replace(r, answer="x"), "train-a"), {TRAIN}),
    "domain": (rows(lambda r: replace(r, domain="b"), "train-a"), {TRAIN}),
    "question": (rows(lambda r: replace(r, question="?"), "train-a"), {TRAIN}),
    "id": (rows(lambda r: replace(r, id="x"), "train-a"), {TRAIN}),
    "an extra column": (rows(lambda r: replace(r, extra={"level": 1}), "train-a"), {TRAIN}),
    "an image less": (rows(lambda r: replace(r, images=()), "train-a"), {f"images of the {TRAIN}"}),
    "an image of training": (image("train-a"), {f"images of the {TRAIN}"}),
    "meta outcome": (rows(lambda r: replace(r, outcome=not r.outcome), "meta"), {META}),
    "meta steps": (rows(lambda r: replace(r, steps=r.steps[::-1]), "meta"), {META}),
    "an image of meta": (image("meta"), {f"images of the {META}"}),
    "correct": (question(judged_otherwise), {TEST}),
    "a candidate's steps": (candidate(steps=("x",), step_labels=None), {TEST}),
    "a candidate's answer": (candidate(answer="x"), {TEST}),
    "the reference answer": (question(lambda q: replace(q, answer="x")), {TEST}),
    "an image of test": (image("test"), {f"images of the {TEST}"}),
    "images swapped": (swapped, {f"images of the {TEST}"}),
}


@pytest.mark.parametrize("streaming", ["never", "always"])
@pytest.mark.parametrize("name", CHANGES)
def test_every_change_shows_where_it_is(data: Path, name: str, streaming: str) -> None:
    change, where = CHANGES[name]
    before = found(data, streaming)
    assert found(data, streaming) == before
    assert set(before) == {
        f"{of}{part}" for part in (TRAIN, META, TEST) for of in ("", "images of the ")
    }
    change(data)
    now = found(data, streaming)
    assert {name for name in now if now[name] != before[name]} == where


@pytest.mark.parametrize("streaming", ["never", "always"])
def test_moved_data_are_the_same(
    data: Path, streaming: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = found(data, streaming)
    shutil.copytree(data, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(data)
    assert found(tmp_path / "elsewhere" / "copy", streaming) == before
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert found(Path("copy"), streaming) == before


def test_built_in_data_are_the_same_everywhere(tmp_path: Path) -> None:
    config = DataConfig(synthetic=SyntheticConfig({"a": "clean"}, 6, 4, 3, 2))
    one, other = (load_data(config, tmp_path / name, 0) for name in ("one", "other"))
    assert one.digests == other.digests
    assert load_data(config, tmp_path / "one", 1).digests != one.digests
    # What is written of them reads as what they are.
    assert one.built_in is not None
    one.built_in.save(tmp_path / "one" / "synthetic")
    read = found(tmp_path / "one" / "synthetic")
    assert read == one.digests


def test_an_image_that_is_missing_counts(data: Path) -> None:
    before = found(data, images="skip_missing")
    load_trajectories(data / "meta.jsonl")[0].images[0].unlink()
    now = found(data, images="skip_missing")
    assert now[META] == before[META]
    assert now[f"images of the {META}"] != before[f"images of the {META}"]


def test_images_of_data_on_disk_are_read_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then only looked at, until their size or one of their times has changed."""
    read: list[str] = []
    digest = digests.hashlib.file_digest

    def spy(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(digests.hashlib, "file_digest", spy)
    training = {row.images[0].name for row in load_trajectories(data / "train-a.jsonl")}
    held_out = {row.images[0].name for row in load_trajectories(data / "meta.jsonl")}
    held_out |= {row.images[0].name for row in load_questions(data / "test.jsonl")}
    found(data, "always")
    assert sorted(read) == sorted(training | held_out)
    read.clear()
    found(data, "always")
    assert sorted(read) == sorted(held_out - training)
    read.clear()
    image("train-a")(data)
    found(data, "always")
    assert len(set(read) & training - held_out) == 1


def test_extra_columns_count_where_there_are_some() -> None:
    """Digests of data without them are those of a reader that knows none."""
    row = Trajectory("1", "d", "q?", ("one",), answer="2")
    said = b'["1", "q?", "2", "d", ["one"], null, null]\n'
    assert Contents.of([row]).rows == hashlib.sha256(said).hexdigest()
    one = Contents.of([replace(row, extra={"level": 1, "split": "x"})])
    assert one.rows != Contents.of([row]).rows
    assert one == Contents.of([replace(row, extra={"split": "x", "level": 1})])
    assert one != Contents.of([replace(row, extra={"split": "x", "level": 2})])
