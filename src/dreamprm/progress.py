"""The progress bar of every command: count, rate, time left, and what else is worth watching."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(name: str | None, total: int | None, unit: str, initial: int = 0) -> tqdm:
    """A bar on standard error; in a file, where lines stay, a line every ten seconds.

    Args:
        name: what it is called; None shows nothing.
        total: units of the whole work; None where nobody knows, then no time left is shown.
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
