"""The numbers of a run: one line of ``metrics.jsonl`` each time, and the same in TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamprm.errors import UserError
from dreamprm.run_directory.events import EventWriter
from dreamprm.run_directory.names import METRICS_FILE, TENSORBOARD
from dreamprm.writing import UnbufferedFile, write_whole, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("dreamprm")


class MetricsLog:
    """Writes the numbers of a run where the run is.

    Args:
        folder: the run directory.
        after_step: the step that the run continues after; what an interrupted run wrote beyond it
            is removed, so that no step stands there twice. 0 for a new run.
        charts: of several numbers each, by TensorBoard's custom scalars: for every title a pattern
            of their names. One line of one event file, where ``add_scalars`` would open a file for
            every name.

    Raises:
        UserError: what is there is no metrics file, or nothing can be written there.
    """

    def __init__(
        self, folder: Path, after_step: int = 0, charts: Mapping[str, str] | None = None
    ) -> None:
        path = folder / METRICS_FILE
        self._left_out: set[str] = set()
        kept = [row for row in read_metrics(folder) if row["step"] <= after_step]
        self._folder = folder
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, [self._line(row) for row in kept])
            self._file = UnbufferedFile(path, "a")
        with writing(folder / TENSORBOARD):
            self._board = EventWriter(folder / TENSORBOARD, after_step + 1)
            if charts:
                lines = {title: ["Multiline", [pattern]] for title, pattern in charts.items()}
                self._board.add_custom_scalars({"dreamprm": lines})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of one step under their names.

        JSON has no number for what is not finite: that is left out of ``metrics.jsonl``, with a
        warning at its first time, and stands in TensorBoard alone.

        Raises:
            UserError: they cannot be written; so do the methods below.
        """
        with writing(self._folder / METRICS_FILE):
            self._file.write(self._line({"step": step, **values}).encode() + b"\n")
        with writing(self._folder / TENSORBOARD):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _line(self, row: Mapping[str, float]) -> str:
        for name, value in row.items():
            if not math.isfinite(value) and name not in self._left_out:
                self._left_out.add(name)
                log.warning(
                    "%s is %s at step %s: what is not finite is left out of %s",
                    name, value, row["step"], METRICS_FILE,
                )  # fmt: skip
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        return json.dumps(finite, allow_nan=False)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Puts a figure into TensorBoard."""
        with writing(self._folder / TENSORBOARD):
            self._board.add_figure(name, figure, step)

    def histogram(self, step: int, name: str, values: list[float]) -> None:
        """Puts the histogram of values into TensorBoard; none of no values."""
        if values:
            with writing(self._folder / TENSORBOARD):
                self._board.add_histogram(name, np.array(values), step)

    def flush(self) -> None:
        """Flushes ``metrics.jsonl`` to the disk, so that no checkpoint is ahead of it."""
        with writing(self._folder / METRICS_FILE):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.jsonl``; a last line that was cut off is left out.

    Raises:
        UserError: a line is no object of numbers with a ``step``; the message names it.
    """
    path = folder / METRICS_FILE
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _row(line: bytes, where: str) -> dict[str, float]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg}") from error
    if not isinstance(row, dict) or not all(isinstance(v, int | float) for v in row.values()):
        raise UserError(f"{where}: expected an object of numbers")
    if "step" not in row:
        raise UserError(f"{where}: has no 'step'")
    return row
