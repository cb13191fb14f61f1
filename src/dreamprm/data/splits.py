"""Splits by question, labels by outcome, and a control domain with shuffled outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dreamprm.data.table import UNKNOWN, TrajectoryTable
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name


def split_by_question(
    trajectories: Sequence[Trajectory], shares: Mapping[str, float], seed: int
) -> dict[str, TrajectoryTable]:
    """Splits such that all solutions of a question are on one side.

    Args:
        trajectories: to split; the questions' texts are in memory meanwhile.
        shares: of the questions for each split, by its name; at most 1 in sum.
        seed: which question goes where is a function of it and of the set of questions.

    Raises:
        UserError: the shares exceed 1, or a split would be left without a question.
    """
    if sum(shares.values()) > 1 + 1e-9 or min(shares.values()) <= 0:
        raise UserError(f"the shares {dict(shares)} must be more than 0, and at most 1 in sum")
    table = TrajectoryTable.of(trajectories)
    if len(shares) == 1 and sum(shares.values()) > 1 - 1e-9:
        return {name: table for name in shares}
    _, firsts, question = np.unique(table.columns.question, return_index=True, return_inverse=True)
    texts = [str(table[int(row)].question_key) for row in firsts]
    by_text = sorted(range(len(texts)), key=texts.__getitem__)
    order = np.random.default_rng(seed).permutation(len(texts))
    ends = np.round(np.cumsum(list(shares.values())) * len(texts)).astype(int)
    split_of = np.full(len(texts), -1)
    for number, (name, start, stop) in enumerate(zip(shares, [0, *ends[:-1]], ends, strict=True)):
        if start == stop:
            raise UserError(f"{len(texts)} questions are too few for a split {name!r}")
        split_of[[by_text[index] for index in order[start:stop]]] = number
    of_row = split_of[question]
    return {
        name: table.take(np.flatnonzero(of_row == number)) for number, name in enumerate(shares)
    }


def label_steps_by_outcome(trajectories: Sequence[Trajectory]) -> TrajectoryTable:
    """Gives each step without a label its solution's outcome, 1 or 0, where that is known."""

    def label(_: int, row: Trajectory) -> Trajectory:
        if row.outcome is None:
            return row
        labels = row.step_labels or (None,) * len(row.steps)
        return replace(
            row,
            step_labels=tuple(float(bool(row.outcome)) if p is None else p for p in labels),
        )

    table = TrajectoryTable.of(trajectories)
    found = table.columns
    judged = found.stepped & (found.outcome != UNKNOWN)
    return table.change(label, labelled=found.labelled | judged)


def shuffled_copy(trajectories: Sequence[Trajectory], domain: str, seed: int) -> TrajectoryTable:
    """A control: a domain once more as ``DOMAIN-shuffled``, its outcomes permuted.

    The share of right outcomes stays; what they say of the solutions is lost.

    Raises:
        UserError: there is no such domain, or its solutions have step labels of their own.
    """
    table = TrajectoryTable.of(trajectories)
    if domain not in table.domains:
        raise UserError(unknown_name("domain", domain, table.domains))
    names = table.columns.names
    rows = table.take(np.flatnonzero(table.columns.domain == names.index(domain)))
    if rows.columns.labelled.any():
        raise UserError(f"the steps of {domain!r} have labels; only outcomes can be shuffled")
    order = np.random.default_rng(seed).permutation(len(rows))
    outcomes = rows.columns.outcome[order]

    def shuffle(index: int, row: Trajectory) -> Trajectory:
        other = outcomes[index]
        return replace(
            row,
            id=f"{row.id}/shuffled",
            domain=f"{domain}-shuffled",
            outcome=None if other == UNKNOWN else bool(other),
        )

    return rows.change(
        shuffle,
        names=(f"{domain}-shuffled",),
        domain=np.zeros(len(rows), np.int32),
        outcome=outcomes,
    )
