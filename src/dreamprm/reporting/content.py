"""What a section of a report is made of: numbers, tables and figures, ready for the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from dreamprm.reporting.plots import Level, Line, line_plot, thinned

TABLE_ROWS = 40  # of a plot's numbers


@dataclass(frozen=True)
class Number:
    """A number as it is shown, and as it is: the page keeps both."""

    value: float
    text: str


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its header.

    Attributes:
        caption: what it shows.
        header: of the columns.
        rows: of cells.
        folded: more rows, shown on demand.
        key: where its numbers come from, for who reads the page by program.
    """

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    folded: list[list[Cell]] = field(default_factory=list)
    key: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot with a caption, and the same as a table for who cannot see it."""

    title: str
    svg: Markup
    caption: str
    numbers: Table | None = None


@dataclass(frozen=True)
class Tile:
    """One number that matters most, and what to hold it against."""

    label: str
    value: Number
    note: str


def number(value: float | None, form: str = ".3f") -> Cell:
    """A number in a format; a dash where there is none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return Number(value, "not a number" if math.isnan(value) else "infinite")
    return Number(value, format(value, form).replace("-", "−"))


def compact(value: float | None) -> Cell:
    """A number of any size in three digits."""
    if value is None or not math.isfinite(value):
        return number(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return number(value, ".2e")
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return number(value, f".{digits}f")


def plot_of(
    name: str,
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    caption: str,
    levels: Sequence[Level] = (),
    faint: Sequence[Line] = (),
    doubling: bool = False,
    unit_square: bool = False,
    table_key: str = "",
) -> Plot:
    """A plot of lines, thinned where they are long, and its numbers as a table.

    Args:
        name: unique in the page.
        title: of the figure.
        lines, x_label, y_label, levels, faint, doubling, unit_square: see ``line_plot``.
        caption: what there is to see.
        table_key: see :class:`Table`.
    """
    shown = [_thin(line) for line in lines]
    longest = max((len(line.x) for line in lines), default=0)
    if any(len(a.x) < len(b.x) for a, b in zip(shown, lines, strict=True)):
        caption += f" Drawn through {len(shown[0].x)} of {longest:,} logged points."
    ends = "; ".join(
        f"{line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines[:6] if line.y
    )
    svg = line_plot(
        name,
        f"{title}: {y_label} over {x_label}. {ends}.",
        [_finite(line) for line in shown],
        x_label,
        y_label,
        levels,
        [_finite(_thin(line, 120)) for line in faint],
        doubling,
        unit_square,
    )
    return Plot(title, svg, caption, _numbers(title, lines, x_label, table_key))


def _numbers(title: str, lines: Sequence[Line], x_label: str, key: str) -> Table:
    values: dict[float, dict[int, Cell]] = {}
    for column, line in enumerate(lines):
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            cell = compact(y)
            if line.low is not None and line.high is not None and isinstance(cell, Number):
                cell = Number(y, f"{y:.3f} ({line.low[i]:.3f}\xa0to\xa0{line.high[i]:.3f})")
            values.setdefault(x, {})[column] = cell
    xs = sorted(values)
    kept = [xs[i] for i in thinned(len(xs), TABLE_ROWS)]
    caption = f"{title}: the numbers"
    if len(kept) < len(xs):
        caption += f" ({len(kept)} of {len(xs):,} logged points)"
    rows: list[list[Cell]] = [
        [Number(x, f"{x:g}"), *(values[x].get(i, "–") for i in range(len(lines)))] for x in kept
    ]
    return Table(caption, [x_label, *(line.label for line in lines)], rows, key=key)


def _thin(line: Line, points: int | None = None) -> Line:
    kept = thinned(len(line.x), *([points] if points else []))

    def take(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else [values[i] for i in kept]

    return Line(
        line.label,
        [line.x[i] for i in kept],
        [line.y[i] for i in kept],
        take(line.low),
        take(line.high),
        line.dashed,
    )


def _finite(line: Line) -> Line:
    """The same with gaps where a value is infinite, which has no place on an axis."""
    y = [value if math.isfinite(value) else math.nan for value in line.y]
    return replace(line, y=y)
