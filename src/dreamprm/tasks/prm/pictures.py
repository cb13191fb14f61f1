"""A picture for TensorBoard: solutions with the scores of their steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamprm.data.trajectory import Trajectory
from dreamprm.engines.pictures import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, STEP_LENGTH, LINE = 8, 220, 76  # steps of a solution, letters of a step, letters of a line


def scored_solutions(rows: Sequence[Trajectory], scores: Sequence[Sequence[float]]) -> Figure:
    """Solutions with their image, every step on the colour of its score and beside its number.

    Args:
        rows: the solutions.
        scores: of every step, in (0, 1).
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from PIL import Image

    texts = [[_wrapped(step) for step in row.steps[:STEPS]] for row in rows]
    lines = [2 + sum(text.count("\n") + 1.4 for text in steps) for steps in texts]
    figure = Figure(figsize=(9, 0.22 * sum(lines) + 0.2), layout="constrained")
    grid = figure.add_gridspec(len(rows), 2, width_ratios=(1, 5), height_ratios=lines)
    for i, (row, steps) in enumerate(zip(rows, texts, strict=True)):
        left, right = figure.add_subplot(grid[i, 0]), figure.add_subplot(grid[i, 1])
        for axes in (left, right):
            axes.axis("off")
        if row.images:
            with Image.open(row.images[0]) as image:
                small = image.convert("RGB")
                small.thumbnail((224, 224))
                left.imshow(small)
        outcome = {True: "right", False: "wrong", None: "outcome unknown"}[row.outcome]
        right.set(xlim=(0, 1), ylim=(lines[i], 0))
        right.text(0, 0.9, shown(f"{row.id}: {outcome}"), weight="bold", size=9)
        y = 1.4
        for step, score in zip(steps, scores[i], strict=False):
            height = step.count("\n") + 1.4
            # The middle of the colour map, on which black can be read.
            colour = colormaps["RdBu"](0.25 + 0.5 * score)
            right.axhspan(y, y + height - 0.1, xmin=0, xmax=1, color=colour)
            right.text(0.01, y + height / 2, f"{score:.2f}", va="center", size=9, weight="bold")
            right.text(0.08, y + height / 2, step, va="center", size=8, parse_math=False)
            y += height
    return figure


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(textwrap.shorten(text, STEP_LENGTH, placeholder=" …"), LINE))
