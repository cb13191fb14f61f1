"""From a config's data section to what a run needs: training, meta and test sets."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dreamprm.data.config import DataConfig
from dreamprm.data.digests import Contents, data_digests
from dreamprm.data.formats import (
    AUTO,
    FORMATS,
    Item,
    find_format,
    load_questions,
    load_trajectories,
    with_images,
)
from dreamprm.data.rows import HUB
from dreamprm.data.splits import label_steps_by_outcome, shuffled_copy, split_by_question
from dreamprm.data.stored import open_stored, stored_contents
from dreamprm.data.synthetic import Synthetic, draw_synthetic
from dreamprm.data.table import TrajectoryTable
from dreamprm.data.trajectory import SelectionQuestion, Trajectory, group_candidates
from dreamprm.errors import UserError, unknown_name
from dreamprm.progress import progress_bar
from dreamprm.run_directory.names import BUILT_IN

log = logging.getLogger("dreamprm")

TEST_SET = "test set"  # its name among the digests
STREAM_ABOVE = 2**27  # bytes of training files, which take some five times that as objects


@dataclass(frozen=True)
class RunData:
    """What a run is trained on and judged by.

    Attributes:
        train: may be on disk; the others are small and in memory.
        meta: scored as a whole at every validation.
        test: questions to select from.
        stored: what the files of ``train`` hold, where it is on disk.
        built_in: the domains as they were drawn, where they are the built-in ones.
    """

    train: TrajectoryTable
    meta: list[Trajectory]
    test: list[SelectionQuestion]
    stored: Sequence[Contents] = ()
    built_in: Synthetic | None = None

    @property
    def streamed(self) -> bool:
        """Whether ``train`` is on disk."""
        return bool(self.stored)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of all that the data are, by the name of the part; see ``data_digests``.

        Of data on disk, those of the whole files, of which ``train`` may be a share.

        Raises:
            UserError: an image cannot be read.
        """
        return data_digests(
            {
                "training data": self.stored or [Contents.of(self.train)],
                "meta set": [Contents.of(self.meta)],
                TEST_SET: [Contents.of(self.test)],
            }
        )

    @property
    def domains(self) -> list[str]:
        """The names of the training domains, sorted."""
        return self.train.domains


def load_data(config: DataConfig, folder: Path, seed: int, redraw: bool = True) -> RunData:
    """Reads, splits and labels the data of a run.

    Args:
        config: the data section.
        folder: the run directory; images of the built-in domains are drawn in its ``synthetic``
            folder, and nothing else is written.
        seed: of the splits and of the built-in domains.
        redraw: whether images that are there already are replaced where they differ.

    Raises:
        UserError: the section names no training data, or a file is wrong.
    """
    synthetic = config.synthetic
    if synthetic.domains:
        if config.train:
            raise UserError("data.train and data.synthetic.domains are both given; give one")
        drawn = draw_synthetic(
            folder / BUILT_IN,
            synthetic.domains,
            synthetic.solutions,
            synthetic.meta,
            synthetic.questions,
            synthetic.candidates,
            seed,
            redraw,
        )

        def shown(rows: Iterable[Item]) -> list[Item]:
            return [with_images(row, row.id, config.images)[0] for row in rows]

        return RunData(
            TrajectoryTable.of(shown(row for rows in drawn.train.values() for row in rows)),
            shown(drawn.meta),
            shown(drawn.test),
            built_in=drawn,
        )
    if not config.train:
        raise UserError("data.train names no file, and data.synthetic.domains no domain")
    paths, meta_paths, test_paths = (_files(config, role) for role in ("train", "meta", "test"))
    formats = _formats(paths, config.format, "data.format")
    meta_formats = _formats(meta_paths, config.meta_format, "data.meta_format")
    streamed = _is_streamed(config, paths)
    if streamed:
        log.info("the training data stay on disk (data.streaming=%s)", config.streaming)
    rows = _read(paths, formats, config.images, streamed)
    shares = {"meta": config.meta_share, "test": config.test_share}
    held_out = {
        name: share for name, share in shares.items() if share and not getattr(config, name)
    }
    if sum(held_out.values()) >= 1:
        keys = " and ".join(f"data.{name}_share {share}" for name, share in held_out.items())
        raise UserError(f"{keys} leave nothing to train on: expected less than 1 in sum")
    splits = split_by_question(rows, {"train": 1 - sum(held_out.values()), **held_out}, seed)
    table = splits["train"]
    if config.shuffled_copy is not None:
        copy = shuffled_copy(table, config.shuffled_copy, seed)
        table = TrajectoryTable.concatenate([table, copy])
    if config.labels == "outcome":
        table = label_steps_by_outcome(table)
    meta = list(splits.get("meta", [])) + [
        row
        for path, format in zip(meta_paths, meta_formats, strict=True)
        for row in load_trajectories(path, format, images=config.images)
    ]
    test = group_candidates(list(splits.get("test", []))) + [
        question for path in test_paths for question in load_questions(path, images=config.images)
    ]
    stored = [
        stored_contents(path, format, config.images)
        for path, format in zip(paths if streamed else [], formats, strict=False)
    ]
    return RunData(table, meta, test, stored)


def expand(names: Sequence[str], key: str, root: str = ".") -> list[Path]:
    """Files from names, patterns such as ``parts/*.jsonl``, and data sets of the hub.

    Args:
        names: as they are given; the files of a pattern come in the order of their names.
        key: of the config, for the message.
        root: the folder that relative ones are taken from.

    Raises:
        UserError: a pattern matches nothing, or a file is named twice.
    """
    found: list[Path] = []
    for name in names:
        if name.startswith(HUB):
            found.append(Path(name))
            continue
        path = Path(root, name)
        if os.path.exists(path) or not glob.has_magic(name):
            found.append(path)
            continue
        matches = sorted(glob.glob(name, root_dir=root, recursive=True))
        if not matches:
            raise UserError(f"{key}: no file matches {str(path)!r}")
        found += [Path(root, match) for match in matches]
    for place, path in enumerate(found):
        if path in found[:place]:
            raise UserError(f"{key}: {path} is named twice")
    return found


def _is_streamed(config: DataConfig, paths: Sequence[Path]) -> bool:
    if config.streaming != "auto":
        return config.streaming == "always"
    size = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    return size > STREAM_ABOVE or any(str(path).startswith(HUB) for path in paths)


def _files(config: DataConfig, role: str) -> list[Path]:
    """The files of ``train``, ``meta`` or ``test``; where one is missing, it is said where from."""
    paths = expand(getattr(config, role), f"data.{role}", config.root)
    formats = {"train": config.format, "meta": config.meta_format}
    format = FORMATS.get(formats.get(role, ""))
    origin = f" ({format.name} is made of {format.origin})" if format and format.origin else ""
    for path in paths:
        try:
            if not str(path).startswith(HUB):
                path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: NUL
            raise UserError(
                f"data.{role}: there is no file {path}{origin}; relative paths are taken from "
                f"data.root, which is {config.root!r}"
            ) from error
        except OSError as error:
            raise UserError(f"data.{role}: cannot read {path}: {error.strerror}") from error
    return paths


def _formats(paths: Sequence[Path], name: str, key: str) -> list[str]:
    """The format of every file: the same, or for ``auto`` as its rows tell."""
    if name != AUTO and name not in FORMATS:
        raise UserError(unknown_name(key, name, [*FORMATS, AUTO]))
    found = []
    for path in paths:
        try:
            found.append(find_format(name, path).name)
        except UserError as error:
            raise UserError(f"{key}={name}: {error}") from error
        if name == AUTO:
            log.info("%s is read as %s", path, found[-1])
    return found


def _read(
    paths: Sequence[Path], formats: Sequence[str], images: str, streamed: bool
) -> TrajectoryTable:
    files = zip(paths, formats, strict=True)
    if streamed:
        return TrajectoryTable.concatenate(
            [open_stored(path, format, images) for path, format in files]
        )
    return TrajectoryTable.of(
        [row for path, format in files for row in load_trajectories(path, format, images=images)]
    )


def usable_train(
    rows: Sequence[Trajectory], fits: Callable[[Trajectory], bool] | None
) -> TrajectoryTable:
    """The solutions with a labelled step that are not too long; the others are counted and said.

    Args:
        rows: the training set.
        fits: whether a solution is short enough; None where that is asked when it is drawn.

    Raises:
        UserError: none is left, or one has no domain.
    """
    table = TrajectoryTable.of(rows)
    if "" in table.domains:
        row = table[int(np.flatnonzero(table.columns.domain == table.columns.names.index(""))[0])]
        raise UserError(f"training solution {row.id!r} has no domain, which its weight is of")
    labelled = np.flatnonzero(table.columns.labelled)
    kept = labelled
    if fits is not None:
        # A bar for what takes more than some seconds.
        name = "lengths" if len(labelled) > 10_000 else None
        with progress_bar(name, len(labelled), "solution") as bar:
            fitting = []
            for index in labelled.tolist():
                fitting.append(fits(table[index]))
                bar.update()
        kept = labelled[np.array(fitting, bool)]
    _say_left_out("training", len(table), len(table) - len(labelled), len(labelled) - len(kept))
    if not len(kept):
        raise UserError(
            f"none of the {len(table)} training solutions has a labelled step and fits "
            "data.max_tokens; with outcomes only, set data.labels=outcome"
        )
    return table.take(kept)


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
