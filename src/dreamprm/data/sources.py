"""From a config's data section to what a run needs: training, meta and test sets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreamprm.config import DataConfig
from dreamprm.data.formats import load_questions, load_trajectories
from dreamprm.data.splits import label_steps_by_outcome, shuffled_copy, split_by_question
from dreamprm.data.synthetic import write_synthetic
from dreamprm.data.trajectory import SelectionQuestion, Trajectory, group_candidates
from dreamprm.errors import UserError

log = logging.getLogger("dreamprm")


@dataclass(frozen=True)
class RunData:
    """What a run is trained on and judged by."""

    train: list[Trajectory]
    meta: list[Trajectory]
    test: list[SelectionQuestion]

    @property
    def domains(self) -> list[str]:
        """The names of the training domains, sorted."""
        return sorted({trajectory.domain for trajectory in self.train})


def load_data(config: DataConfig, folder: Path, seed: int) -> RunData:
    """Reads, splits and labels the data of a run.

    Args:
        config: the data section.
        folder: the run directory; the built-in domains are written to its ``synthetic`` folder.
        seed: of the splits and of the built-in domains.

    Raises:
        UserError: the section names no training data, or a file is wrong.
    """
    synthetic = config.synthetic
    if synthetic.domains:
        if config.train:
            raise UserError("data.train and data.synthetic.domains are both given; give one")
        data = folder / "synthetic"
        write_synthetic(
            data,
            synthetic.domains,
            synthetic.solutions,
            synthetic.meta,
            synthetic.questions,
            synthetic.candidates,
            seed,
        )
        train = [
            row
            for name in synthetic.domains
            for row in load_trajectories(data / f"train-{name}.jsonl", images=config.images)
        ]
        return RunData(
            train,
            load_trajectories(data / "meta.jsonl", images=config.images),
            load_questions(data / "test.jsonl", images=config.images),
        )
    if not config.train:
        raise UserError("data.train names no file, and data.synthetic.domains no domain")
    rows = [
        row
        for path in config.train
        for row in load_trajectories(path, config.format, images=config.images)
    ]
    shares = {"meta": config.meta_share, "test": config.test_share}
    held_out = {
        name: share for name, share in shares.items() if share and not getattr(config, name)
    }
    splits = split_by_question(rows, {"train": 1 - sum(held_out.values()), **held_out}, seed)
    train = splits["train"]
    if config.shuffled_copy is not None:
        train = train + shuffled_copy(train, config.shuffled_copy, seed)
    if config.labels == "outcome":
        train = label_steps_by_outcome(train)
    meta = splits.get("meta", []) + [
        row
        for path in config.meta
        for row in load_trajectories(path, config.meta_format, images=config.images)
    ]
    test = group_candidates(splits.get("test", [])) + [
        question for path in config.test for question in load_questions(path, images=config.images)
    ]
    return RunData(train, meta, test)


def usable_train(rows: list[Trajectory], fits: Callable[[Trajectory], bool]) -> list[Trajectory]:
    """The solutions with a labelled step that are not too long; the others are counted and said.

    Raises:
        UserError: none is left, or one has no domain.
    """
    for row in rows:
        if not row.domain:
            raise UserError(f"training solution {row.id!r} has no domain, which its weight is of")
    labelled = [row for row in rows if row.has_labels]
    kept = [row for row in labelled if fits(row)]
    _say_left_out("training", len(rows), len(rows) - len(labelled), len(labelled) - len(kept))
    if not kept:
        raise UserError(
            f"none of the {len(rows)} training solutions has a labelled step and fits "
            "data.max_tokens; with outcomes only, set data.labels=outcome"
        )
    return kept


def usable_meta(rows: list[Trajectory], fits: Callable[[Trajectory], bool]) -> list[Trajectory]:
    """The solutions with steps and an outcome that are not too long; the others are counted.

    Raises:
        UserError: none is left.
    """
    judged = [row for row in rows if row.steps and row.outcome is not None]
    kept = [row for row in judged if fits(row)]
    _say_left_out("meta", len(rows), len(rows) - len(judged), len(judged) - len(kept))
    if not kept:
        raise UserError(
            f"none of the {len(rows)} solutions of the meta set has steps and an outcome and fits "
            "data.max_tokens"
        )
    return kept


def _say_left_out(kind: str, rows: int, without: int, too_long: int) -> None:
    if without or too_long:
        what = "labelled step" if kind == "training" else "step or outcome"
        log.warning(
            "%s: %d of %d solutions left out: %d without a %s, %d longer than data.max_tokens",
            kind,
            without + too_long,
            rows,
            without,
            what,
            too_long,
        )
