"""Checkpoints: a folder ``step-N`` each, written whole or not at all, and known to be whole."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from dreamprm.errors import UserError
from dreamprm.writing import UnbufferedFile, sync_folder, synced_file, writing

log = logging.getLogger("dreamprm")

STATE_FILE, ABOUT_FILE = "state.pt", "checkpoint.json"
FORMAT = 4  # of the state too: raised whenever what a problem or an engine saves changes
OTHER_FORMAT = "is of format {found}, written by another version of dreamprm; this one reads {own}"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes ``folder/step-N`` and removes all but the ``keep`` newest checkpoints up to it.

    Those of later steps go too: this run went on from before them. The checkpoint is written
    beside its place, flushed to disk and moved there, so that at every moment the one or the other
    is there whole.

    Raises:
        UserError: it cannot be written; what was there stays.
    """
    target, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    with writing(f"checkpoint {target}"):
        try:
            _restore_replaced(folder)
            for left in folder.glob(".step-*.partial"):
                shutil.rmtree(left)
            partial.mkdir(parents=True)
            about = {"format": FORMAT, "step": step, **_write_state(partial / STATE_FILE, state)}
            about["of_this"] = _digest_of(about)
            with synced_file(partial / ABOUT_FILE) as file:
                file.write(json.dumps(about).encode() + b"\n")
            sync_folder(partial)
            replaced = folder / f".step-{step}.replaced"
            if target.exists():
                os.replace(target, replaced)
            os.replace(partial, target)
            sync_folder(folder)
            sync_folder(folder.parent)
            shutil.rmtree(replaced, ignore_errors=True)
            steps = checkpoint_steps(folder)
            kept = [each for each in steps if each <= step][-keep:]
            for old in set(steps) - set(kept):
                shutil.rmtree(folder / f"step-{old}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of which there is a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in names if match)


def load_latest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole, on the CPU; None where there is none.

    One that is damaged is named in a warning, and the one before it taken.

    Raises:
        UserError: there are checkpoints, but none is whole, or the newest that is whole is of
            another format.
    """
    try:
        _restore_replaced(folder)
        steps = checkpoint_steps(folder)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    damaged: list[str] = []
    for step in reversed(steps):
        path = folder / f"step-{step}"
        try:
            damage = _damage(path, step)
        except OSError as error:
            damage = f"cannot be read: {error.strerror}"
        if damage is None:
            for line in damaged:
                log.warning("checkpoint %s: the one before it is taken", line)
            # weights_only: nothing in the file is executed.
            return torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        damaged.append(f"{path} {damage}")
    if damaged:
        raise UserError(f"no checkpoint is whole, start the run anew: {'; '.join(damaged)}")
    return None


def need_same_data(before: Any, now: Mapping[str, str]) -> None:
    """Refuses to continue on other data.

    Args:
        before: digests by the name of the part, as the checkpoint has them.
        now: of the data at hand.

    Raises:
        UserError: names the parts that differ.
    """
    changed = [name for name in (before | now) if before.get(name) != now.get(name)]
    if changed:
        raise UserError(
            f"the data are not those that the run was begun with: other {', '.join(changed)}; "
            "bring them back, give another out=, or --overwrite the run"
        )


def _damage(path: Path, step: int) -> str | None:
    """What is wrong with a checkpoint; None where it is whole.

    Raises:
        UserError: it is whole, but of another format.
    """
    if not (path / ABOUT_FILE).is_file():
        return f"has no {ABOUT_FILE} (versions of dreamprm before this format wrote none)"
    try:
        about = json.loads((path / ABOUT_FILE).read_bytes())
        own = about.pop("of_this")
    except (ValueError, LookupError, AttributeError, TypeError):
        return f"has a damaged {ABOUT_FILE}"
    if own != _digest_of(about):
        return f"has a damaged {ABOUT_FILE}"
    if about["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} {OTHER_FORMAT.format(found=about['format'], own=FORMAT)}"
        )
    if about["step"] != step:
        return f"is of step {about['step']}"
    if not (path / STATE_FILE).is_file():
        return f"has no {STATE_FILE}"
    size = (path / STATE_FILE).stat().st_size
    if size != about["bytes"]:
        return f"has a {STATE_FILE} of {size:,} bytes, expected {about['bytes']:,}"
    with (path / STATE_FILE).open("rb") as file:
        if hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() != about["xxh3_128"]:
            return f"has a {STATE_FILE} that is not what was written"
    return None


class _Summed:
    """A file that sums up what is written to it, and keeps an error that torch replaces."""

    def __init__(self, file: UnbufferedFile) -> None:
        self.file = file
        self.sum, self.size = xxhash.xxh3_128(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Nothing waits to be written."""


def _write_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Writes a state; gives its size and its sum."""
    with synced_file(path) as file:
        summed = _Summed(file)
        try:
            torch.save(state, summed)  # type: ignore[arg-type]
        except RuntimeError:
            # torch closes the archive after a failed write, and fails at that.
            if summed.error is not None:
                raise summed.error from None
            raise
    return {"bytes": summed.size, "xxh3_128": summed.sum.hexdigest()}


def _restore_replaced(folder: Path) -> None:
    """Puts back what a killed run moved out of the way and did not replace."""
    for path in folder.glob(".step-*.replaced"):
        target = folder / path.name.removeprefix(".").removesuffix(".replaced")
        if target.exists():
            shutil.rmtree(path)
        else:
            os.replace(path, target)


def _digest_of(about: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(about, sort_keys=True).encode())
