"""Checkpoints on disk: damage is found wherever it is, and a kill at any moment loses nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dreamprm.run_directory.checkpoints as checkpoints
from dreamprm.cli import main
from dreamprm.errors import UserError
from dreamprm.run_directory.checkpoints import (
    checkpoint_steps,
    load_latest_checkpoint,
    save_checkpoint,
)
from dreamprm.run_directory.metrics import read_metrics
from dreamprm.writing import UnbufferedFile
from tests.test_finite_runs import TINY
from tests.toy import toy


def state(step: int) -> dict[str, Any]:
    return {"step": step, "tensor": torch.full((40,), float(step))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step, state(step), keep=2)
    return tmp_path / "checkpoints"


def found(folder: Path) -> int:
    state = load_latest_checkpoint(folder)
    assert state is not None
    assert bool((state["tensor"] == state["step"]).all())
    return state["step"]


def flipped(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no state": (lambda p: (p / "state.pt").unlink(), "has no state.pt"),
    "no sums": (lambda p: (p / "checkpoint.json").unlink(), "has no checkpoint.json"),
    "nothing": (lambda p: [each.unlink() for each in p.iterdir()], "has no checkpoint.json"),
    "empty state": (lambda p: (p / "state.pt").write_bytes(b""), "of 0 bytes, expected"),
    "empty sums": (lambda p: (p / "checkpoint.json").write_bytes(b""), "damaged checkpoint.json"),
    "truncated": (lambda p: os.truncate(p / "state.pt", 1000), "of 1,000 bytes, expected"),
    "longer": (lambda p: (p / "state.pt").open("ab").write(b"\0"), "bytes, expected"),
    "other JSON": (lambda p: (p / "checkpoint.json").write_text("[1]"), "damaged checkpoint.json"),
    "another step's": (
        lambda p: shutil.copytree(p.parent / "step-1", p, dirs_exist_ok=True),
        "is of step 1",
    ),
    "a folder in its place": (
        lambda p: ((p / "state.pt").unlink(), (p / "state.pt").mkdir()),
        "has no state.pt",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    harm, message = DAMAGES[damage]
    harm(folder / "step-2")
    with caplog.at_level(logging.WARNING, logger="dreamprm"):
        assert found(folder) == 1
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"checkpoint {folder / 'step-2'} ")
    assert message in line
    assert line.endswith(": the one before it is taken")


@pytest.mark.parametrize("name", ["state.pt", "checkpoint.json"])
def test_every_flipped_byte_is_found(folder: Path, name: str) -> None:
    path = folder / "step-2" / name
    whole = path.read_bytes()
    # Of the state every fifth, all of the 8 bits in turn.
    for position in range(0, len(whole), 5 if name == "state.pt" else 1):
        flipped(path, position, position % 8)
        assert found(folder) == 1, position
        path.write_bytes(whole)
    assert found(folder) == 2


def test_every_truncation_is_found(folder: Path) -> None:
    for name in ("state.pt", "checkpoint.json"):
        path = folder / "step-2" / name
        whole = path.read_bytes()
        # The last byte of checkpoint.json ends its line, and says nothing.
        for length in range(0, len(whole) - 1, 11):
            path.write_bytes(whole[:length])
            assert found(folder) == 1, (name, length)
        path.write_bytes(whole)


def test_none_that_is_whole_is_an_error_and_no_new_start(folder: Path) -> None:
    flipped(folder / "step-2" / "state.pt", 900, 3)
    (folder / "step-1" / "state.pt").unlink()
    with pytest.raises(UserError) as caught:
        load_latest_checkpoint(folder)
    assert str(caught.value) == (
        "no checkpoint is whole, start the run anew: "
        f"{folder / 'step-2'} has a state.pt that is not what was written; "
        f"{folder / 'step-1'} has no state.pt"
    )


def test_checkpoints_without_a_version_are_refused(folder: Path) -> None:
    for step in (1, 2):
        (folder / f"step-{step}" / "checkpoint.json").unlink()
    with pytest.raises(UserError, match=r"versions of dreamprm before this format wrote none"):
        load_latest_checkpoint(folder)


@pytest.mark.parametrize("found", [checkpoints.FORMAT - 1, checkpoints.FORMAT + 1])
def test_another_format_is_refused(
    folder: Path, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", found)
    save_checkpoint(folder, 3, state(3), keep=3)
    monkeypatch.undo()
    (folder / "step-3" / "state.pt").rename(folder / "step-3" / "another.pt")
    expected = rf"step-3 is of format {found}, .* this one reads {checkpoints.FORMAT}$"
    with pytest.raises(UserError, match=expected):
        load_latest_checkpoint(folder)


def test_a_file_that_cannot_be_read_counts_as_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == folder / "step-2" / "state.pt":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    assert found(folder) == 1
    assert "cannot be read: Input/output error" in caplog.text


@pytest.mark.parametrize("size", [0, 100, 3000, 40_000])
def test_a_full_disk_is_one_message_and_leaves_the_old_ones(folder: Path, size: int) -> None:
    """The system refuses what is beyond so many bytes; torch makes another error of that."""
    resource = pytest.importorskip("resource")
    large = {"step": 3, "tensor": torch.zeros(100, 100), "more": torch.zeros(10_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match=r"checkpoints/step-3: File too large$"):
            save_checkpoint(folder, 3, large, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in folder.iterdir()) == ["step-1", "step-2"]
    assert found(folder) == 2


@pytest.mark.parametrize(("of", "call"), [(Path, "mkdir"), (UnbufferedFile, "write")])
def test_a_read_only_folder_is_one_message(
    folder: Path, of: type, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(of, call, refused)
    with pytest.raises(UserError, match=r"checkpoint .*step-3: Read-only file system$"):
        save_checkpoint(folder, 3, state(3), keep=2)
    monkeypatch.undo()
    assert found(folder) == 2


def test_a_file_in_the_place_of_the_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"cannot write checkpoint .*step-1: "):
        save_checkpoint(tmp_path / "checkpoints", 1, state(1), keep=2)


def test_all_is_flushed_before_it_is_moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"flush {path.relative_to(folder.parent)}")
        if path.is_file():  # by now, all of it is written
            assert path.stat().st_size > 0
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        events.append(f"move {source.name} to {target.name}")
        replace(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save_checkpoint(folder, 3, state(3), keep=2)
    assert events == [
        "flush checkpoints/.step-3.partial/state.pt",
        "flush checkpoints/.step-3.partial/checkpoint.json",
        "flush checkpoints/.step-3.partial",
        "move .step-3.partial to step-3",
        "flush checkpoints",
        "flush .",
    ]
    about = json.loads((folder / "step-3" / "checkpoint.json").read_text())
    assert (about["format"], about["step"]) == (checkpoints.FORMAT, 3)
    assert about["bytes"] == (folder / "step-3" / "state.pt").stat().st_size


class Killed(BaseException):
    """Nothing after it runs, not even what cleans up."""


def dying(call: Callable[..., Any], clock: list[int]) -> Callable[..., Any]:
    """The call, which kills once the clock has run down."""

    def counted(*arguments: Any, **options: Any) -> Any:
        clock[0] -= 1
        if clock[0] < 0:
            raise Killed
        return call(*arguments, **options)

    return counted


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, keep: int) -> None:
    """A step saved anew: it dies before the n-th call that changes the disk, for every n."""
    moment, died = 0, True
    while died:
        folder = tmp_path / str(moment) / "checkpoints"
        for step in (1, 2):
            save_checkpoint(folder, step, state(step), keep)
        with pytest.MonkeyPatch.context() as patch:
            clock = [moment]
            for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree")):
                patch.setattr(module, name, dying(getattr(module, name), clock))
            try:
                save_checkpoint(folder, 2, state(2), keep)
                died = False
            except Killed:
                moment += 1
        assert found(folder) == 2
        # The next one is as if nothing had been.
        save_checkpoint(folder, 3, state(3), keep)
        assert found(folder) == 3
        kept = [f"step-{step}" for step in (2, 3)[-keep:]]
        assert sorted(path.name for path in folder.iterdir()) == kept
    assert moment >= 8  # two files and three folders flushed, two moves, two removals at least


def test_later_checkpoints_go_when_the_run_went_on_from_before_them(folder: Path) -> None:
    """Else the damaged one would be the newest for good, and count for one that is kept."""
    save_checkpoint(folder, 9, state(9), keep=3)
    flipped(folder / "step-9" / "state.pt", 900, 0)
    assert found(folder) == 2
    save_checkpoint(folder, 3, state(3), keep=1)
    assert checkpoint_steps(folder) == [3]


def parameters(engine: Any) -> list[torch.Tensor]:
    return [p.detach() for problem in engine.problems for p in problem.module.parameters()]


@pytest.mark.parametrize("damaged", [12, 23])
def test_a_run_from_the_older_checkpoint_ends_like_one_that_was_not_disturbed(
    tmp_path: Path, damaged: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = toy(steps=23, run_directory=tmp_path / "whole", log_every=1)
    whole.run()
    config: dict[str, Any] = {
        "run_directory": tmp_path / "cut", "log_every": 1, "checkpoint_every": 4
    }  # fmt: skip
    first = toy(steps=23, **config)
    first.train_iters = damaged  # as if it were killed after the checkpoint of that step
    first.run()
    flipped(tmp_path / "cut" / "checkpoints" / f"step-{damaged}" / "state.pt", 5000, 1)
    second = toy(steps=23, **config)
    assert second.resume()
    assert second.global_step == {12: 8, 23: 20}[damaged]
    assert f"step-{damaged} has a state.pt that is not what was written" in caplog.text
    second.run()
    assert all(map(torch.equal, parameters(whole), parameters(second)))
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    assert checkpoint_steps(tmp_path / "cut" / "checkpoints") == [20, 23]
    third = toy(steps=23, **config)
    assert third.resume()
    assert third.global_step == 23


def test_a_damaged_run_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["demo", "--out", str(tmp_path / "run"), *TINY, "weighting=uniform"]
    assert main(command) == 0
    folder = tmp_path / "run" / "checkpoints"
    flipped(folder / "step-4" / "state.pt", 50_000, 2)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert main([*command, "--resume"]) == 0
    assert f"checkpoint {folder / 'step-4'} has a state.pt that is not what" in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics
    for step in checkpoint_steps(folder):
        os.truncate(folder / f"step-{step}" / "state.pt", 0)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dreamprm: no checkpoint is whole, start the run anew: ")
