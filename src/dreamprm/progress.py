"""The progress bar of every command, and lines beside it: count, rate, what is worth watching."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

log = logging.getLogger("dreamprm")


class Unread:
    """False until a bar has found that nobody reads it any longer, as after ``2>&1 | head``."""

    def __init__(self) -> None:
        self.found = False

    def __bool__(self) -> bool:
        return self.found


_noted: list[Unread] = []


@contextmanager
def unread_noted() -> Iterator[Unread]:
    """Within it, a bar that nobody reads is noted and shows no more; else BrokenPipeError."""
    unread = Unread()
    _noted.append(unread)
    try:
        yield unread
    finally:
        _noted.remove(unread)


class _Bar(tqdm):
    def display(self, *args: Any, **kwargs: Any) -> Any:
        with self._noting():
            return super().display(*args, **kwargs)

    def close(self) -> None:
        with self._noting():
            super().close()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.disable = True
            if not _noted:
                raise
            _noted[-1].found = True


def progress_bar(name: str | None, total: int | None, unit: str, initial: int = 0) -> tqdm:
    """A bar on standard error; in a file, where lines stay, a line every ten seconds.

    Args:
        name: what it is called; None shows nothing.
        total: units of the whole work; None where that is not known.
        unit: what is counted.
        initial: units that are done already.
    """
    return _Bar(
        total=total,
        initial=initial,
        desc=name,
        disable=name is None,
        unit=unit,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )


def show(title: str, numbers: dict[str, float]) -> None:
    """Logs numbers by their names, and where no one listens to the log, as in a notebook, prints.

    Past a progress bar, on standard output.
    """
    line = f"{title}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    log.info("%s", line)
    if not (log.isEnabledFor(logging.INFO) and log.hasHandlers()):
        tqdm.write(line)
