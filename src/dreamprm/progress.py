"""The progress bar of every command, and lines beside it: count, rate, what is worth watching."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

log = logging.getLogger("dreamprm")


def progress_bar(name: str | None, total: int | None, unit: str, initial: int = 0) -> tqdm:
    """A bar on standard error; in a file, where lines stay, a line every ten seconds.

    Args:
        name: what it is called; None shows nothing.
        total: units of the whole work; None where that is not known.
        unit: what is counted.
        initial: units that are done already.
    """
    return tqdm(
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
