"""The weights of single rows: the rows at both ends, and how the weights of all are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamprm.data.rows import need, read_rows
from dreamprm.errors import UserError
from dreamprm.reporting.content import Cell, Plot, Table, number, plot_of
from dreamprm.reporting.plots import Line
from dreamprm.reporting.text import shortened
from dreamprm.words import Words, plural

BINS = 30
QUANTILES = (5, 25, 50, 75, 95)
TEXT_LENGTH = 100
ROWS = 20  # that the table shows at once, half of them the lowest


@dataclass(frozen=True)
class WeightedRow:
    """A row, the weight that it ended with, and its text."""

    id: str
    weight: float
    text: str


def read_weighted_rows(path: Path) -> list[WeightedRow]:
    """Reads ``rows.jsonl``: the rows at both ends, the lowest weight first.

    Raises:
        UserError: it is something else; the message names file and line.
    """
    if not path.stat().st_size:
        return []
    rows = []
    for where, row in read_rows(path):
        weight = need(row, "weight", (int, float), where)
        if isinstance(weight, bool):
            raise UserError(f"{where}: weight is {weight}, expected a number")
        rows.append(
            WeightedRow(need(row, "id", str, where), float(weight), need(row, "text", str, where))
        )
    return rows


def ends_table(rows: Sequence[WeightedRow], words: Words) -> Table:
    """The rows at both ends, the lowest weight first; the middle ones are folded."""
    cells: list[list[Cell]] = [
        [row.id, number(row.weight), shortened(row.text, TEXT_LENGTH)] for row in rows
    ]
    half = ROWS // 2
    low, middle, high = cells[:half], cells[half : len(cells) - half], cells[-half:]
    shown, folded = (cells, []) if len(cells) <= ROWS else (low + high, middle)
    caption = f"The {plural(words.sample)} with the lowest and the highest weights at the end"
    return Table(caption, [words.sample, "weight", "text"], shown, folded, key="rows")


def distribution(weights: Sequence[float], words: Words) -> tuple[Plot | None, str]:
    """The share of rows by weight as a plot, and a line of quantiles; nothing of no weights.

    Args:
        weights: of all rows.
        words: of the task.
    """
    values = np.asarray(weights, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None, ""
    counts, edges = np.histogram(values, bins=BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    samples = plural(words.sample)
    found = np.percentile(values, QUANTILES)
    quantiles = ", ".join(f"{q}\xa0%: {v:.3f}" for q, v in zip(QUANTILES, found, strict=True))
    plot = plot_of(
        "row-weights",
        f"Weights of the {samples}",
        [Line(f"share of {samples}", middles.tolist(), (counts / len(values)).tolist())],
        "weight",
        f"share of {samples}",
        f"All {len(values):,} {samples} in {BINS} bins of equal width, each at its middle.",
        table_key="row-weights",
    )
    return plot, f"Quantiles of the {len(values):,} weights: {quantiles}."
