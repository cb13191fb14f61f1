"""The run directory of any task: locked, never lost, replaced whole, refused when it is damaged."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from dreamprm.errors import UserError
from dreamprm.run_directory.lock import LOCK_FILE, locked
from dreamprm.run_directory.names import CONFIG_FILE
from dreamprm.run_directory.opening import open_run, refuse_many_processes


@dataclass
class Config:
    steps: int = 1
    log_every: int = 1

    FREE: ClassVar[tuple[str, ...]] = ("log_every",)


FILES = ("metrics.jsonl", "summary.json", "checkpoints/step-1/state.pt", "model/prm.json")


def write_run(out: Path, config: Config, resume: bool = False, overwrite: bool = False) -> bool:
    """A whole run, whose files say which one they are of; whether it went on with another."""
    with open_run(out, config, resume, overwrite) as run:
        run.begin()
        for name in FILES:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(str(config.steps))
        return run.continues


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fork(work: Iterator[None]) -> int:
    """Does work in another process; its status, or less than 0 for the signal that ended it."""
    process = os.fork()
    if process == 0:
        try:
            for _ in work:
                pass
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_at(change: int, out: Path) -> Iterator[None]:
    """Replaces a run, and ends as by SIGKILL before the so-manieth change of the disk."""
    left = change

    def counted(name: str) -> None:
        call = getattr(os, name)

        def counting(*arguments: object, **keywords: object) -> object:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*arguments, **keywords)

        setattr(os, name, counting)

    for name in ("replace", "unlink", "rmdir"):
        counted(name)
    write_run(out, Config(steps=2), overwrite=True)
    yield


def test_a_kill_while_a_run_is_replaced_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    seen = set()
    for change in range(100):
        out = tmp_path / f"run-{change}"
        write_run(out, Config(steps=1))
        whole = contents(out)
        ended = fork(killed_at(change, out))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        left = {name: content for name, content in contents(out).items() if name in whole}
        try:
            with open_run(out, Config(steps=2), resume=True, overwrite=False) as run:
                kept = [(out / name).read_text() for name in FILES if (out / name).exists()]
        except UserError as error:
            seen.add(str(error))
            assert left == whole
        else:
            seen.add("new")
            assert run.continues
            assert set(kept) <= {"2"}
    refused = {found for found in seen if "differs from this config in steps" in found}
    assert refused
    assert seen - refused == {"new"}
    assert change > len(FILES)


def test_a_run_that_does_not_begin_leaves_what_was_there(tmp_path: Path) -> None:
    fresh, out = tmp_path / "a" / "b" / "run", tmp_path / "run"
    write_run(out, Config(steps=1))
    before = contents(out)

    def fail(folder: Path) -> None:
        with open_run(folder, Config(steps=2), resume=False, overwrite=True):
            (folder / "synthetic").mkdir()
            raise RuntimeError

    for folder in (fresh, out):
        with pytest.raises(RuntimeError):
            fail(folder)
    assert contents(out) == before
    assert not (tmp_path / "a").exists()


def test_only_the_free_keys_may_change(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Config(steps=1))
    assert write_run(tmp_path / "run", Config(steps=1, log_every=7), resume=True)
    with pytest.raises(UserError, match="differs from this config in steps"):
        write_run(tmp_path / "run", Config(steps=2), resume=True)
    with pytest.raises(UserError, match="--resume continues it, --overwrite replaces it"):
        write_run(tmp_path / "run", Config(steps=1))
    assert not write_run(tmp_path / "run", Config(steps=2), overwrite=True)


def test_what_a_killed_start_leaves_is_not_foreign(tmp_path: Path) -> None:
    for name in (LOCK_FILE, "config.yaml.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / "synthetic").mkdir()
    assert not write_run(tmp_path, Config())
    other = tmp_path / "other"
    (other / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match="holds thesis, which is of no run"):
        write_run(other, Config())
    assert [path.name for path in other.iterdir()] == ["thesis"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95\xff\x00", "is not UTF-8 text"),
        (b"\x00\x01\x02", "is not YAML"),
        (b"steps: [1", "is not YAML"),
        (b"", "is empty, expected keys and values"),
        (b"- 1\n", "holds list, expected keys and values"),
    ],
)
def test_a_damaged_config_is_one_message(tmp_path: Path, content: bytes, message: str) -> None:
    write_run(tmp_path, Config())
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError, match=message) as found:
        write_run(tmp_path, Config(), resume=True)
    assert str(tmp_path / CONFIG_FILE) in str(found.value)
    write_run(tmp_path, Config(), overwrite=True)


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path: Path, flag: str) -> None:
    write_run(tmp_path, Config())
    before = contents(tmp_path)
    with (
        open_run(tmp_path, Config(), resume=True, overwrite=False),
        pytest.raises(UserError) as refused,
    ):
        write_run(tmp_path, Config(), **{flag: True})
    holder = f"process {os.getpid()} on {socket.gethostname()} since 2"
    assert f"is being written to by {holder}" in str(refused.value)
    assert contents(tmp_path) == before
    write_run(tmp_path, Config(), **{flag: True})


def test_the_lock_of_a_dead_process_is_none(tmp_path: Path) -> None:
    def die() -> Iterator[None]:
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
            yield

    assert fork(die()) == -signal.SIGKILL
    assert (tmp_path / LOCK_FILE).read_text().startswith("process ")
    with locked(tmp_path) as lock:
        assert lock.holds()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path):
        assert "has no locks: start no second run in it" in caplog.text


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_was_removed_or_replaced_is_noticed(tmp_path: Path, again: bool) -> None:
    out = tmp_path / "run"
    with open_run(out, Config(), resume=False, overwrite=False) as run:
        run.begin()
        run.check()
        shutil.rmtree(out)
        if again:
            write_run(out, Config(steps=2))
        with pytest.raises(UserError, match="was removed or replaced"):
            run.check()
    assert out.exists() == again


@pytest.mark.parametrize("size", [None, "", "1"])
def test_one_process_is_not_refused(size: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    refuse_many_processes()
