"""Reward models on files of questions and of labelled steps: all numbers of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, need_whole
from dreamprm.evaluation.data_sets import DataSet, held_out_set, selection_file, steps_file
from dreamprm.evaluation.evaluate_selection import evaluate_picks
from dreamprm.evaluation.evaluate_steps import evaluate_steps
from dreamprm.evaluation.examples import choose_examples
from dreamprm.evaluation.result import Evaluation, Examples, Judging, Steps
from dreamprm.evaluation.significance import CONFIDENCE
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.scoring_batches import MAX_TOKENS
from dreamprm.scoring.aggregation import AGGREGATIONS, aggregation_named, probabilities
from dreamprm.scoring.files import find_model
from dreamprm.writing import write_whole, writing

TOTAL = "total"
Logits = list[list[float]]  # of every step of every solution
ByModel = dict[str, list[Logits]]  # of every data set
Group = tuple[DataSet, dict[str, Logits]]  # one data set and the logits of every model


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

    @property
    def judging(self) -> Judging:
        """What the numbers depend on."""
        return Judging(
            list(self.aggregations),
            self.bootstrap,
            CONFIDENCE,
            self.seed,
            self.threshold,
            self.threshold_domain,
            self.bins,
        )

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
) -> Evaluation:
    """Evaluates reward models side by side; the same as ``dreamprm evaluate``.

    Args:
        models: folders of reward models, or run directories.
        selection: files of questions with candidates, or of trajectories with outcomes.
        steps: files of trajectories with step labels, or of questions whose candidates have them.
            Where neither is given, the test set of the first model's run is both.
        settings: how; None for the defaults.
        out: a JSON file for what is returned, written whole or not at all.
        overwrite: replace a file that is there.

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
    every = [*picked, *labelled]
    logits = {name: list(_scored(folders[name], every, settings.max_tokens)) for name in models}
    judging = settings.judging
    result = Evaluation(
        judging,
        list(models),
        [evaluate_picks(*group, judging) for group in _with_total(picked, logits)],
        _steps(labelled, {m: rows[len(picked) :] for m, rows in logits.items()}, judging),
        _examples(every, logits, settings),
    )
    if out is not None:
        with writing(out):
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, [json.dumps(result.as_json(), allow_nan=False)])
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


def _scored(folder: Path, data_sets: Sequence[DataSet], max_tokens: int) -> Iterator[Logits]:
    """One model's step logits of every data set; of equal ones, once."""
    model = ProcessRewardModel.from_pretrained(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    known: dict[tuple[Trajectory, ...], Logits] = {}
    for data in data_sets:
        key = tuple(data.rows)
        if key not in known:
            known[key] = model.step_logits(data.rows, max_tokens, progress=data.name)
        yield known[key]


def _with_total(data_sets: Sequence[DataSet], logits: ByModel) -> Iterator[Group]:
    """Every data set with each model's step logits; of several, a last one of all together."""
    for i, data in enumerate(data_sets):
        yield data, {name: parts[i] for name, parts in logits.items()}
    if len(data_sets) > 1:
        questions = [question for data in data_sets for question in data.questions]
        rows = [row for data in data_sets for row in data.rows]
        chained = {name: list(chain.from_iterable(parts)) for name, parts in logits.items()}
        yield DataSet(TOTAL, None, questions, rows), chained


def _steps(labelled: Sequence[DataSet], logits: ByModel, judging: Judging) -> list[Steps]:
    named = [
        replace(data, rows=[replace(row, domain=row.domain or data.name) for row in data.rows])
        for data in labelled
    ]
    groups = list(_with_total(named, logits))
    # A domain that sets the threshold may be a file, so then the files are judged together only.
    if judging.threshold_domain is not None:
        groups = groups[-1:]
    found = []
    for data, logits_of in groups:
        scores = {name: list(map(probabilities, rows)) for name, rows in logits_of.items()}
        models = {name: evaluate_steps(data.rows, of, judging) for name, of in scores.items()}
        found.append(Steps(data.name, data.path, models))
    return found


def _examples(data_sets: Sequence[DataSet], logits: ByModel, settings: Settings) -> list[Examples]:
    aggregation, count = settings.aggregations[0], settings.examples
    return [
        choose_examples(data, name, rows[i], aggregation, count)
        for i, data in enumerate(data_sets)
        if not any(data.rows == other.rows for other in data_sets[:i])
        for name, rows in logits.items()
    ]
