"""Reward models on files of questions and of labelled steps: all numbers in one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, need_whole
from dreamprm.evaluation.data_sets import DataSet, held_out_set, selection_file, steps_file
from dreamprm.evaluation.evaluate_selection import Logits, SelectionSettings, evaluate_picks
from dreamprm.evaluation.evaluate_steps import StepSettings, evaluate_steps
from dreamprm.evaluation.examples import example_mistakes, example_solutions
from dreamprm.evaluation.significance import CONFIDENCE
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.scoring_batches import MAX_TOKENS
from dreamprm.scoring.aggregation import AGGREGATIONS, aggregation_named, probabilities
from dreamprm.scoring.files import find_model
from dreamprm.writing import write_whole

SCHEMA = "dreamprm-evaluation-1"
TOTAL = "total"


@dataclass(frozen=True)
class Settings:
    """How models are evaluated.

    Attributes:
        aggregations: keys of ``AGGREGATIONS``; examples are chosen by the first.
        bootstrap: resamples of the questions, and of the solutions for step metrics; 0 for none.
        seed: of all that is drawn.
        threshold: a step scored above it is called right.
        threshold_domain: take the threshold with the highest ProcessBench F1 on this domain.
        bins: of the reliability curve.
        examples: solutions of each kind that are written down.
        selection_format, steps_format: of the files.
        images: what a missing image means, see ``load_trajectories``.
        max_tokens: tokens per batch, padding included.
    """

    aggregations: tuple[str, ...] = tuple(AGGREGATIONS)
    bootstrap: int = 1000
    seed: int = 0
    threshold: float = 0.5
    threshold_domain: str | None = None
    bins: int = 10
    examples: int = 4
    selection_format: str = "canonical"
    steps_format: str = "canonical"
    images: str = "require"
    max_tokens: int = MAX_TOKENS

    def check(self) -> None:
        """Refuses what is out of range.

        Raises:
            UserError: names the option, what was found and what was expected.
        """
        if not self.aggregations:
            raise UserError("--aggregation names none")
        for name in self.aggregations:
            aggregation_named(name)
        for option, value, least in (
            ("--bootstrap", self.bootstrap, 0),
            ("--seed", self.seed, 0),
            ("--bins", self.bins, 1),
            ("--examples", self.examples, 0),
            ("--max-tokens", self.max_tokens, 1),
        ):
            need_whole(option, value, least)
        if not 0 <= self.threshold < 1:
            raise UserError(f"--threshold is {self.threshold}, expected 0 or more and less than 1")


def evaluate(
    models: Sequence[str],
    selection: Sequence[str] = (),
    steps: Sequence[str] = (),
    settings: Settings | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluates reward models side by side; the same as ``dreamprm evaluate``.

    Args:
        models: folders of reward models, or run directories.
        selection: files of questions with candidates, or of trajectories with outcomes.
        steps: files of trajectories with step labels, or of questions whose candidates have them.
            Where neither is given, the test set of the first model's run is both.
        settings: how; None for the defaults.
        out: a file for what is returned, written whole or not at all.
        overwrite: replace a file that is there.

    Returns:
        what docs/evaluation.md says.

    Raises:
        UserError: a model, a file or a setting is not as it must be, or there is an output already.
        FloatingPointError: a model's scores are no numbers.
    """
    settings = settings or Settings()
    settings.check()
    for given, value, files, what in (
        ("--selection-format", settings.selection_format, selection, "--selection"),
        ("--steps-format", settings.steps_format, steps, "--steps"),
    ):
        if value != "canonical" and not files:
            raise UserError(f"{given} is {value}, but there are no files: give {what}")
    if overwrite and out is None:
        raise UserError("--overwrite is for an output file: give one by --out")
    if len(set(models)) != len(models) or not models:
        raise UserError(f"the models are {', '.join(models)}: expected one or more, each once")
    if out is not None and Path(out).exists() and not overwrite:
        raise UserError(f"{out} is there already: --overwrite replaces it")
    folders = {name: find_model(name) for name in models}
    picked, labelled = _data(models, selection, steps, settings)
    logits = {name: list(_scored(folders[name], picked, labelled, settings)) for name in models}
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "settings": {
            "aggregations": list(settings.aggregations),
            "bootstrap": settings.bootstrap,
            "confidence": CONFIDENCE,
            "seed": settings.seed,
            "threshold": settings.threshold,
            "threshold_domain": settings.threshold_domain,
            "bins": settings.bins,
        },
        "models": list(models),
        "selection": _selection(picked, logits, settings),
        "steps": _steps(labelled, {m: rows[len(picked) :] for m, rows in logits.items()}, settings),
        "examples": _examples(picked, labelled, logits, settings),
    }
    if out is not None:
        try:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}") from error
        write_whole(out, [json.dumps(result, allow_nan=False)])
    return result


def _data(
    models: Sequence[str], selection: Sequence[str], steps: Sequence[str], settings: Settings
) -> tuple[list[DataSet], list[DataSet]]:
    """What to pick from, and what has labelled steps."""
    if not selection and not steps:
        found = held_out_set(models[0], settings.images)
        labelled = [found] if any(row.has_labels for row in found.rows) else []
        return [found], labelled
    picked = [selection_file(p, settings.selection_format, settings.images) for p in selection]
    labelled = [steps_file(path, settings.steps_format, settings.images) for path in steps]
    for kind in (picked, labelled):
        names = [data.name for data in kind]
        for data in kind:
            if data.name == TOTAL or names.count(data.name) > 1:
                raise UserError(f"{data.path}: {data.name!r} is the name of another, rename it")
    return picked, labelled


def _scored(
    folder: Path, picked: Sequence[DataSet], labelled: Sequence[DataSet], settings: Settings
) -> Iterator[list[list[float]]]:
    """One model's step logits of every data set; of equal ones, once."""
    model = ProcessRewardModel.from_pretrained(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    known: dict[tuple[Trajectory, ...], list[list[float]]] = {}
    for data in [*picked, *labelled]:
        key = tuple(data.rows)
        if key not in known:
            known[key] = model.step_logits(data.rows, settings.max_tokens, progress=data.name)
        yield known[key]


def _by_question(data: DataSet, logits: Sequence[list[float]]) -> Logits:
    rows = iter(logits)
    return [[next(rows) for _ in question.candidates] for question in data.questions]


def _selection(
    picked: Sequence[DataSet], logits: dict[str, list[list[list[float]]]], settings: Settings
) -> list[dict[str, Any]]:
    how = SelectionSettings(settings.aggregations, settings.bootstrap, settings.seed)
    found = []
    for i, data in enumerate(picked):
        scores = {name: _by_question(data, rows[i]) for name, rows in logits.items()}
        numbers = evaluate_picks(data.questions, scores, how)
        found.append({"name": data.name, "path": data.path} | numbers)
    if len(picked) > 1:
        questions = [question for data in picked for question in data.questions]
        scores = {
            name: [
                row
                for data, part in zip(picked, rows, strict=False)
                for row in _by_question(data, part)
            ]
            for name, rows in logits.items()
        }
        numbers = evaluate_picks(questions, scores, how)
        del numbers["picks"]  # they stand with their files
        found.append({"name": TOTAL, "path": None} | numbers)
    return found


def _steps(
    labelled: Sequence[DataSet], logits: dict[str, list[list[list[float]]]], settings: Settings
) -> list[dict[str, Any]]:
    how = StepSettings(
        settings.threshold,
        settings.threshold_domain,
        settings.bins,
        settings.bootstrap,
        settings.seed,
    )
    groups: list[tuple[str, str | None, list[int]]] = []
    # A domain that sets the threshold may be a file, so then the files are judged together only.
    if len(labelled) == 1 or settings.threshold_domain is None:
        groups += [(data.name, data.path, [i]) for i, data in enumerate(labelled)]
    if len(labelled) > 1:
        groups.append((TOTAL, None, list(range(len(labelled)))))
    found = []
    for name, path, members in groups:
        rows = [row for i in members for row in labelled[i].rows]
        domains = [labelled[i].name for i in members for _ in labelled[i].rows]
        found.append(
            {
                "name": name,
                "path": path,
                "models": {
                    model: evaluate_steps(
                        rows,
                        [probabilities(steps) for i in members for steps in parts[i]],
                        how,
                        domains,
                    )
                    for model, parts in logits.items()
                },
            }
        )
    return found


def _examples(
    picked: Sequence[DataSet],
    labelled: Sequence[DataSet],
    logits: dict[str, list[list[list[float]]]],
    settings: Settings,
) -> list[dict[str, Any]]:
    aggregation, count = settings.aggregations[0], settings.examples
    found = []
    data_sets = [*picked, *labelled]
    for i, data in enumerate(data_sets):
        if any(data.rows == other.rows for other in data_sets[:i]):
            continue
        for name, rows in logits.items():
            kinds = example_solutions(data.rows, rows[i], aggregation, count)
            mistakes = example_mistakes(
                data.questions, _by_question(data, rows[i]), aggregation, count
            )
            found.append({"data": data.name, "model": name} | kinds | {"mistakes": mistakes})
    return found
