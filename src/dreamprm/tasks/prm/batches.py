"""The batches of a run's two levels, from its config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch

from dreamprm.data.batches import BatchStream
from dreamprm.data.table import TrajectoryTable
from dreamprm.data.token_batches import TokenBatchStream
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.encoding import Encoder
from dreamprm.problems.meta_losses import META_LOSSES
from dreamprm.tasks.prm.config import Config

log = logging.getLogger("dreamprm")

Collate: TypeAlias = Callable[[Sequence[Trajectory]], Any]


def train_batches(
    config: Config,
    rows: TrajectoryTable,
    encode: Collate,
    fits: Callable[[Trajectory], bool] | None = None,
) -> BatchStream:
    """Micro-batches of the lower level: sampled as ``data.sampling`` says, or filled by tokens.

    Args:
        config: of the run.
        rows: the training set.
        encode: collates.
        fits: whether a solution is short enough, where that has not been looked at yet.
    """
    size = config.lower.batch_size // config.lower.accumulate
    if config.lower.max_tokens is not None:
        lengths = [_tokens(cast(Encoder, encode), row, config.lower.max_tokens) for row in rows]
        filled = TokenBatchStream(rows, lengths, config.lower.max_tokens, size, encode, config.seed)
        log.info("batches filled by tokens: %.1f %% padding", 100 * filled.padding())
        return filled
    groups = None if config.data.sampling == "proportional" else rows.groups()
    stream = BatchStream(rows, size, encode, config.seed, groups, config.data.temperature, fits)
    if fits is not None:
        stream.indices(0)  # what fits nowhere is found before the run begins
    return stream


def _tokens(encode: Encoder, row: Trajectory, most: int) -> int:
    """The tokens of a solution in a batch, in all of its rows.

    Raises:
        UserError: they are more than a batch may have.
    """
    found = encode.rows(row)
    tokens = len(found) * max(len(ids) for ids, _ in found)
    if tokens > most:
        raise UserError(
            f"training solution {row.id!r} is {len(found)} rows of at most {tokens // len(found)} "
            f"tokens, which lower.max_tokens={most} cannot hold"
        )
    return tokens


def meta_batches(
    rows: list[Trajectory], meta_loss: str, batch_size: int, encode: Collate, seed: int
) -> BatchStream:
    """Batches of the meta set, with what the meta loss needs in every one of them.

    For a level-invariant loss: whole questions with right and wrong solutions where at least a
    tenth of the solutions are of such; the others are left out then (docs/results.md measures why).
    Else, and for a loss of steps, as many right solutions as wrong ones.

    Raises:
        UserError: the meta set has one outcome only, and the loss compares right with wrong; or the
            loss is of steps, and none has a label.
    """
    if META_LOSSES[meta_loss].of_steps and not any(
        label is not None for row in rows for label in row.step_labels or ()
    ):
        raise UserError(f"meta_loss={meta_loss} is of steps, but the meta set has no step labels")
    outcomes = {bool(row.outcome) for row in rows}
    if len(outcomes) == 1:
        only = "right" if True in outcomes else "wrong"
        if META_LOSSES[meta_loss].both_outcomes:
            raise UserError(
                f"all {len(rows)} usable solutions of the meta set are {only}: "
                f"meta_loss={meta_loss} compares right with wrong ones; add the others, "
                "or take meta_loss=aggregation_mse"
            )
        log.warning(
            "all %d usable solutions of the meta set are %s: %s will reward "
            "whatever moves all scores that way",
            len(rows),
            only,
            meta_loss,
        )
    if not META_LOSSES[meta_loss].both_outcomes:
        return BatchStream(rows, batch_size, encode, seed)
    if batch_size < 2:
        raise UserError(
            f"upper.batch_size is {batch_size} (a micro-batch); meta_loss={meta_loss} needs 2"
        )
    questions: dict[Any, list[Trajectory]] = {}
    for row in rows:
        questions.setdefault(row.question_key, []).append(row)
    mixed = [group for group in questions.values() if len({row.outcome for row in group}) == 2]
    of_mixed = sum(map(len, mixed))
    if 10 * of_mixed >= len(rows) and len(questions) > 1 and not META_LOSSES[meta_loss].of_steps:
        if of_mixed < len(rows):
            log.info(
                "meta set: %d of %d solutions are of questions with right and wrong ones, which "
                "%s compares; the others are left out",
                of_mixed,
                len(rows),
                meta_loss,
            )
        average = of_mixed / len(mixed)
        places = {id(row): place for place, row in enumerate(rows)}

        def flat(groups: list[list[Trajectory]]) -> Any:
            members = [row for group in groups for row in group]
            batch = encode(members)
            if isinstance(batch, dict):
                batch["index"] = torch.tensor([places[id(row)] for row in members])
            return batch

        return BatchStream(mixed, max(1, round(batch_size / average)), flat, seed)
    return BatchStream(rows, batch_size, encode, seed, [str(row.outcome) for row in rows])
