"""What models are evaluated on: files, or what a run held out for its test."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dreamprm.config.plugins import load_plugins
from dreamprm.config.reading import read_part, read_values
from dreamprm.data.config import DataConfig
from dreamprm.data.digests import Contents, data_digests
from dreamprm.data.formats import load_questions, load_trajectories
from dreamprm.data.sources import TEST_SET, load_data
from dreamprm.data.trajectory import SelectionQuestion, Trajectory, group_candidates
from dreamprm.errors import UserError
from dreamprm.run_directory.names import BUILT_IN, CONFIG_FILE, SUMMARY_FILE
from dreamprm.scoring.selecting import holds_candidates


@dataclass(frozen=True)
class DataSet:
    """Questions to select from, or solutions with step labels.

    Attributes:
        name: for people, unique among those of its kind.
        path: where it comes from; None of several together.
        questions: with candidates that are right or wrong; empty where there are none.
        rows: the solutions.
    """

    name: str
    path: str | None
    questions: list[SelectionQuestion]
    rows: list[Trajectory]

    def by_question(self, logits: Iterable[list[float]]) -> list[list[list[float]]]:
        """What there is of every solution, as candidates of their questions."""
        rows = iter(logits)
        return [[next(rows) for _ in question.candidates] for question in self.questions]


def selection_file(path: str, format: str = "canonical", images: str = "require") -> DataSet:
    """Questions with candidates, or trajectories with outcomes, those of one question together.

    Raises:
        UserError: the file is missing, empty or wrong, or nothing in it has an outcome.
    """
    if format == "canonical" and holds_candidates(Path(path)):
        questions = load_questions(path, images=images)
    else:
        questions = group_candidates(load_trajectories(path, format, images=images))
        if not questions:
            raise UserError(f"{path}: no solution has an outcome, by which picks are judged")
    return DataSet(Path(path).stem, path, questions, _rows(questions))


def steps_file(path: str, format: str = "canonical", images: str = "require") -> DataSet:
    """Trajectories with step labels, or the candidates of questions.

    Raises:
        UserError: the file is missing, empty or wrong, or no step has a label.
    """
    if format == "canonical" and holds_candidates(Path(path)):
        rows = _rows(load_questions(path, images=images, judged=False))
    else:
        rows = load_trajectories(path, format, images=images)
    if not any(row.has_labels for row in rows):
        raise UserError(f"{path}: no step has a label, which step metrics are of")
    return DataSet(Path(path).stem, path, [], rows)


def held_out_set(run: str, images: str = "require") -> DataSet:
    """The questions that a run was tested on, by its ``config.yaml``.

    Args:
        run: its folder.
        images: what a missing image means, where the run's config does not leave images out.

    Raises:
        UserError: it is no run, it has no test set, or its data are no longer there or no longer
            the same: another split would test on questions of the training.
    """
    folder = Path(run)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{run} holds no {CONFIG_FILE}, its test set is not known: give --selection or --steps"
        )
    values = read_values(folder / CONFIG_FILE)
    if "data" not in values:
        raise UserError(f"{run} is a run of task {values['task']}, expected one of a reward model")
    load_plugins(values.get("plugins", []), folder)  # whose formats the data may have
    config: DataConfig = read_part(values["data"], DataConfig, str(folder / CONFIG_FILE))
    as_trained = images in ("require", config.images)
    if not as_trained:
        config.images = images
    if config.synthetic.domains:
        # As it was written when the run began; load_data would draw it anew.
        questions = load_questions(folder / BUILT_IN / "test.jsonl", images=config.images)
    else:
        try:
            questions = load_data(config, folder, values["seed"]).test
        except UserError as error:
            raise UserError(
                f"the test set of {run} cannot be read as {CONFIG_FILE} there says ({error}): "
                "give --selection or --steps"
            ) from error
    if not questions:
        raise UserError(f"{run} has no test set: give --selection or --steps")
    summary = folder / SUMMARY_FILE
    known = json.loads(summary.read_text()).get("data", {}) if summary.is_file() else {}
    found = data_digests({TEST_SET: [Contents.of(questions)]} if known else {})
    changed = [name for name in found if known[name] != found[name]]
    if not as_trained:  # other images are what was asked for
        changed = [name for name in changed if name == TEST_SET]
    if changed:
        raise UserError(
            f"the data of {run} have changed since it was trained ({', '.join(changed)}), so that "
            "its test set is not known: give --selection or --steps"
        )
    return DataSet("test", run, questions, _rows(questions))


def _rows(questions: list[SelectionQuestion]) -> list[Trajectory]:
    return [row for question in questions for row in question.trajectories()]
