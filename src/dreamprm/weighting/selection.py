"""Training rows that are chosen by a rule, by their labels alone; the others count 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dreamprm.errors import UserError, need_positive
from dreamprm.weighting.fixed import FixedWeights
from dreamprm.weighting.rows import Rows, grouped


def balanced_information(
    rows: Rows, *, share: float = 0.25, alpha: float = 0.05, column: str | None = None
) -> FixedWeights:
    """The rows of every group whose labels say most: weights of mean 1 over all rows.

    Args:
        rows: the training rows; their labels are one a step, as Monte Carlo estimates are.
        share: of a group's rows that have labels, how many are kept; one at least.
        alpha: of :func:`information`, more than 0.
        column: whose values are the groups; by default the one that the data are grouped by.

    Raises:
        UserError: an option is out of range, or the rows have no labels of steps.
    """
    need_positive("weighting_options.alpha", alpha)
    need_positive("weighting_options.share", share)
    if share > 1:
        raise UserError(f"weighting_options.share is {share}, expected at most 1")
    found = [_known(labels) for labels in rows.column(rows.labels)]
    if not any(found):
        raise UserError(
            f"weighting=balanced_information needs labels of steps: no training row has any in its "
            f"{rows.labels}"
        )
    values = torch.tensor(
        [information(labels, alpha) if labels else -1.0 for labels in found], dtype=torch.float64
    )
    names, places = grouped(rows, column or rows.group)
    weights = torch.zeros(len(values), dtype=torch.float64)
    for group in range(len(names)):
        members = ((places == group) & (values >= 0)).nonzero().squeeze(1)
        most = max(1, int(share * len(members)))
        best = values[members].argsort(descending=True, stable=True)[:most]
        weights[members[best]] = 1.0
    return FixedWeights({}, weights / weights.mean())


def information(labels: Sequence[float], alpha: float) -> float:
    """The Balanced-Information Score of a solution (Li et al. 2026, arXiv 2602.04145).

    (p (1 − p) + α) R, with p the share of steps whose label is above 0, and R the mean label of
    these, or 1 where there are none: mixed labels, of which the positive ones are sure.

    Args:
        labels: of the steps, from 0 to 1; at least one.
        alpha: α; the authors' is 0.05.
    """
    positive = [label for label in labels if label > 0]
    p = len(positive) / len(labels)
    reliable = sum(positive) / len(positive) if positive else 1.0
    return (p * (1 - p) + alpha) * reliable


def _known(labels: Any) -> list[float]:
    """The labels of steps that are known; none of what has no labels of steps."""
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        return []
    return [float(label) for label in labels if label is not None]
