"""A picture for TensorBoard: a bar for every weight."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 60  # half of them the highest weights, half the lowest


def weight_bars(weights: Mapping[str, float]) -> Figure:
    """A bar for every weight; of more than ``BARS``, for the highest and the lowest."""
    from matplotlib.figure import Figure  # half a second to import

    names = list(weights)
    if len(names) > BARS:
        ordered = sorted(names, key=lambda name: -weights[name])
        names = ordered[: BARS // 2] + ordered[-BARS // 2 :]
    figure = Figure(figsize=(6, 0.3 * len(names) + 1), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [weights[name] for name in names])
    axes.set_yticks(range(len(names)), [shown(name) for name in names])
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("weight (mean 1)")
    if len(names) < len(weights):
        axes.set_title(f"{BARS // 2} highest and {BARS // 2} lowest of {len(weights)}")
    return figure


def shown(name: str) -> str:
    """A name short enough, and without what matplotlib would take for mathematics."""
    return textwrap.shorten(name, 60, placeholder=" …").replace("$", r"\$")
