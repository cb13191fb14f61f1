"""Files and folders that are there whole or not at all; what cannot be written is one message."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dreamprm.errors import UserError

PARTIAL = ".tmp"  # ends the name of what is being written


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Within it, what the operating system refuses names what was to be written.

    Raises:
        UserError: the disk is full, the folder is read-only or gone, or the like.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class UnbufferedFile(io.FileIO):
    """A file whose ``write`` takes all or raises, and which has nothing left to write then.

    A buffer that could not be written would be tried again when the file is collected.
    """

    def write(self, data: Any) -> int:
        """Writes all of the bytes."""
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


@contextmanager
def synced_file(path: Path) -> Iterator[UnbufferedFile]:
    """A new file to write to, which is on disk when the block ends without an error."""
    with UnbufferedFile(path, "w") as file:
        yield file
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on disk, where the system does that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: str | Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place when the block ends without an error.

    Args:
        path: of the file.
        sync: whether it is on disk then, and not in the system's memory alone.

    Raises:
        UserError: it cannot be written; what was there before stays.
    """
    partial = Path(f"{path}{PARTIAL}")
    with writing(path):
        try:
            with partial.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_whole(path: str | Path, lines: Sequence[str]) -> None:
    """Writes lines, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as file:
        file.writelines((line + "\n").encode() for line in lines)


@contextmanager
def whole_folder(path: str | Path, last: str) -> Iterator[Path]:
    """A folder to write to, whose files take their places in ``path`` when the block ends.

    What else is in ``path`` stays. ``last`` leaves first and comes last, so that what is there is
    all of one writing where ``last`` is there.

    Args:
        path: the folder; made if need be.
        last: the file without which nobody takes the others for whole.

    Raises:
        UserError: it cannot be written.
    """
    target = Path(path).absolute()
    partial = target.with_name(target.name + PARTIAL)
    with writing(path):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            if not target.exists():
                os.replace(partial, target)
                return
            (target / last).unlink(missing_ok=True)
            for found in sorted(partial.iterdir(), key=lambda found: found.name == last):
                if (target / found.name).is_dir():
                    shutil.rmtree(target / found.name)
                os.replace(found, target / found.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
