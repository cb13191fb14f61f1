"""Every plot of a report: lines over steps, over N or over scores, and the weights' paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from dreamprm.reporting.svg import MUTED, inline_svg, series_colour
from dreamprm.reporting.text import shortened

POINTS = 300  # of a line at most
NAME_LENGTH = 26  # of a name in a legend
# Beside the colour, so that it is not the only difference.
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "os^Dv<>P"


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        label: in the legend.
        x, y: its points.
        low, high: an interval at each of them, if any.
        dashed: something to hold the others against.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line: something to hold the others against."""

    label: str
    value: float


def thinned(count: int, points: int = POINTS) -> list[int]:
    """At most ``points`` of the indices 0 … ``count`` − 1, evenly, with the first and the last."""
    if count <= points:
        return list(range(count))
    return [round(i * (count - 1) / (points - 1)) for i in range(points)]


def line_plot(
    name: str,
    label: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    faint: Sequence[Line] = (),
    doubling: bool = False,
    unit_square: bool = False,
) -> Markup:
    """Lines on one pair of axes, with a legend below.

    Args:
        name, label: see :func:`~dreamprm.reporting.svg.inline_svg`.
        lines: at most a dozen can be told apart.
        x_label, y_label: of the axes.
        levels: to hold them against.
        faint: lines without a name, behind the others.
        doubling: x is 1, 2, 4, …
        unit_square: both axes from 0 to 1, with the diagonal.
    """
    rows = (len(lines) + len(levels) + 1) // 2

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        handles, names = [], []
        if faint:
            paths = [list(zip(line.x, line.y, strict=True)) for line in faint]
            axes.add_collection(
                LineCollection(paths, colors=MUTED, linewidths=0.7, alpha=0.35), autolim=True
            )
        if unit_square:
            axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        for index, line in enumerate(lines):
            few = len(line.x) <= 16
            (handle,) = axes.plot(
                line.x,
                line.y,
                color=series_colour(index),
                linestyle="--" if line.dashed else _DASHES[(index // len(_MARKERS)) % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4.5,
                clip_on=not unit_square,  # a curve that ends in a corner shows its end
                markevery=1 if few else (0.04 + 0.012 * (index % 8), 0.17),
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(
                    line.x, line.low, line.high, color=series_colour(index), alpha=0.16, linewidth=0
                )
            handles.append(handle)
            names.append(_legend_name(line.label))
        for index, level in enumerate(levels):
            handle = axes.axhline(
                level.value, color=MUTED, linewidth=1.2, linestyle=_DASHES[1 + index % 3]
            )
            handles.append(handle)
            names.append(_legend_name(level.label))
        axes.margins(x=0.02)
        if doubling:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for line in lines for x in line.x})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        elif not unit_square:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        if not unit_square:
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            formatter = ScalarFormatter(useOffset=False)
            formatter.set_powerlimits((-3, 5))
            axes.yaxis.set_major_formatter(formatter)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(handles) > 1 or levels:
            figure.legend(handles, names, loc="outside lower left", ncols=2, columnspacing=1.2)

    height = (4.2 if unit_square else 2.9) + 0.23 * rows
    return inline_svg(name, label, draw, (5.4, height))


def _legend_name(name: str) -> str:
    # matplotlib leaves out names that start with an underscore.
    return shortened(f"\u2060{name}" if name.startswith("_") else name, NAME_LENGTH)
