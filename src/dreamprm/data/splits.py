"""Splits by question, labels by outcome, and a control domain with shuffled outcomes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name


def split_by_question(
    trajectories: Sequence[Trajectory], shares: Mapping[str, float], seed: int
) -> dict[str, list[Trajectory]]:
    """Splits such that all solutions of a question are on one side.

    Args:
        trajectories: to split.
        shares: of the questions for each split, by its name; at most 1 in sum.
        seed: which question goes where is a function of it and of the set of questions.

    Raises:
        UserError: the shares exceed 1, or a split would be left without a question.
    """
    if sum(shares.values()) > 1 + 1e-9 or min(shares.values()) <= 0:
        raise UserError(f"the shares {dict(shares)} must be more than 0, and at most 1 in sum")
    keys: list[Hashable] = sorted({row.question_key for row in trajectories}, key=str)
    order = np.random.default_rng(seed).permutation(len(keys))
    ends = np.round(np.cumsum(list(shares.values())) * len(keys)).astype(int)
    split_of: dict[Hashable, str] = {}
    for name, start, stop in zip(shares, [0, *ends[:-1]], ends, strict=True):
        if start == stop:
            raise UserError(f"{len(keys)} questions are too few for a split {name!r}")
        split_of.update((keys[index], name) for index in order[start:stop])
    splits: dict[str, list[Trajectory]] = {name: [] for name in shares}
    for row in trajectories:
        if row.question_key in split_of:
            splits[split_of[row.question_key]].append(row)
    return splits


def label_steps_by_outcome(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Gives each step without a label its solution's outcome, 1 or 0, where that is known."""
    return [
        row
        if row.outcome is None
        else replace(
            row,
            step_labels=tuple(
                float(row.outcome) if label is None else label
                for label in row.step_labels or (None,) * len(row.steps)
            ),
        )
        for row in trajectories
    ]


def shuffled_copy(trajectories: Sequence[Trajectory], domain: str, seed: int) -> list[Trajectory]:
    """A control: a domain once more as ``DOMAIN-shuffled``, its outcomes permuted.

    The share of right outcomes stays; what they say of the solutions is lost.

    Raises:
        UserError: there is no such domain, or its solutions have step labels of their own.
    """
    rows = [row for row in trajectories if row.domain == domain]
    if not rows:
        raise UserError(unknown_name("domain", domain, {row.domain for row in trajectories}))
    if any(row.has_labels for row in rows):
        raise UserError(f"the steps of {domain!r} have labels; only outcomes can be shuffled")
    order = np.random.default_rng(seed).permutation(len(rows))
    return [
        replace(
            row,
            id=f"{row.id}/shuffled",
            domain=f"{domain}-shuffled",
            outcome=rows[int(other)].outcome,
        )
        for row, other in zip(rows, order, strict=True)
    ]
