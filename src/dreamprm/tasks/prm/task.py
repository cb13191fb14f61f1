"""DreamPRM put together: data, reward model, two linked problems, engine, numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreamprm.data.sources import RunData, load_data, usable_meta, usable_train
from dreamprm.data.table import TrajectoryTable
from dreamprm.data.trajectory import Trajectory
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.evaluation.accuracy import evaluate_selection
from dreamprm.models.build import build_model
from dreamprm.models.frozen import StateEncoder, compute_states, some_states
from dreamprm.models.readouts import Network
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.problems.prm import DomainWeighting, PRMFineTuning
from dreamprm.reporting.examples import choose_examples, save_examples
from dreamprm.run_directory.names import BUILT_IN, EXAMPLES_FILE, MODEL
from dreamprm.run_directory.opening import RunDirectory
from dreamprm.scoring.selection import step_logits_of
from dreamprm.tasks.columns import META
from dreamprm.tasks.corrections import corrections
from dreamprm.tasks.prm.batches import Collate, meta_batches, train_batches
from dreamprm.tasks.prm.config import Config
from dreamprm.tasks.prm.observing import Observer, build_observer
from dreamprm.tasks.prm.words import WORDS
from dreamprm.tasks.reweighting import link
from dreamprm.weighting import WEIGHTINGS, Rows

log = logging.getLogger("dreamprm")


class PRMEngine(ReweightingEngine):
    """Validates as its observer says: on the meta set, and what it looks at beside that."""

    def __init__(self, *args: Any, observer: Observer, **parts: Any) -> None:
        self.observer = observer
        super().__init__(*args, **parts)

    def validation(self) -> dict[str, float]:
        """See :meth:`~dreamprm.tasks.prm.observing.Observer.look`."""
        return self.observer.look(self.lower.module)

    def histograms(self) -> dict[str, list[float]]:
        """The step scores of every domain."""
        return super().histograms() | self.observer.histograms

    def figures(self) -> dict[str, Any]:
        """The weights, and solutions with their scores."""
        return super().figures() | self.observer.figures()

    def charts(self) -> dict[str, str]:
        """The weights in one chart, the selection by N in another."""
        return super().charts() | {"selection (best of N)": r"validation/(test|meta)_best_of_\d+"}


class PRMTask:
    """The data of a run, and its engine; the built-in domains are drawn into the run directory.

    Raises:
        UserError: the data are not as they must be.
    """

    words = WORDS

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self.config = config
        self.data = load_data(config.data, run.path, config.seed, redraw=not run.continues)
        self.digests = self.data.digests
        self.keep = (BUILT_IN,) if self.data.built_in else ()

    def begin(self, run: RunDirectory) -> None:
        """Writes the built-in data."""
        if self.data.built_in:
            self.data.built_in.save(run.path / BUILT_IN)

    def engine(self, config: Config, folder: Path) -> PRMEngine:
        """See :func:`build_engine`."""
        return build_engine(config, self.data, folder)

    def end(self, engine: PRMEngine, folder: Path) -> dict[str, Any]:
        """Saves the reward model, and gives its numbers on the test set."""
        (batches,) = engine.lower.train_data_loader
        if batches.left_out:
            log.warning(
                "%d solutions longer than data.max_tokens were left out when they were drawn",
                batches.left_out,
            )
        model: ProcessRewardModel = engine.lower.module
        model.save_pretrained(folder / MODEL)
        return _evaluate(model, self.data, folder) | self._corrections(engine)

    def _corrections(self, engine: PRMEngine) -> dict[str, Any]:
        """What became of the step labels, where they are learned and the right ones known."""
        labels, built_in = engine.row_labels(), self.data.built_in
        if labels is None or built_in is None:
            return {}
        return corrections(labels, map(built_in.truth.get, engine.rows.names()))

    def facts(self) -> dict[str, Any]:
        """The meta loss, and the qualities of the built-in domains."""
        qualities = dict(self.config.data.synthetic.domains)
        return {"meta_loss": self.config.meta_loss, "qualities": qualities}


def build_engine(config: Config, data: RunData, folder: Path) -> PRMEngine:
    """The model, the problems and the engine of one run, all a function of the config's seed.

    Args:
        config: of the run.
        data: of the run.
        folder: the engine's run directory.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model, data.train, config.seed, config.precision)
    encoder = model.encoder([*data.domains, *([META] if config.train_on != "train" else [])])
    encode: Collate = encoder

    def fits(row: Trajectory) -> bool:
        return len(encoder.tokens(row)[0]) <= config.data.max_tokens

    # Of data on disk, lengths are looked at when a solution is drawn: all of them take too long.
    later = data.streamed and config.lower.max_tokens is None
    # A plain run needs no meta set, but validates on one that is there.
    wanted = data.meta or WEIGHTINGS[config.weighting].learned or config.train_on != "train"
    meta = usable_meta(data.meta, fits) if wanted else []
    parts = [usable_train(data.train, None if later else fits)] if config.train_on != "meta" else []
    parts += [labelled_by_outcome(meta)] if config.train_on != "train" else []
    table = TrajectoryTable.concatenate(parts)
    if model.store is not None:
        tested = [row for question in data.test for row in question.trajectories()]
        compute_states(model, [*table, *meta, *tested], progress="states")
        if isinstance(model.readout, Network):
            model.readout.standardise(some_states(model.store, table))
        encode = StateEncoder(encoder, model.store)
    stream = train_batches(config, table, encode, fits if later else None)
    return link(
        config,
        folder,
        module=model,
        lower=partial(PRMFineTuning, step_loss=config.step_loss),
        upper=partial(
            DomainWeighting, meta_loss=config.meta_loss, options=config.meta_loss_options
        ),
        train=stream,
        meta=lambda: meta_batches(
            meta,
            config.meta_loss,
            config.upper.batch_size // config.upper.accumulate,
            encode,
            config.seed,
        ),
        rows=Rows(
            len(table),
            table.column,
            lambda: [str(name) for name in table.column("id")],
            lambda place: "\n".join([table[place].question, *table[place].steps]),
            lambda: stream.collated([0]),
            labels="step_labels",
        ),
        engine=PRMEngine,
        observer=build_observer(config.observe, table, meta, data.test, fits),
    )


def labelled_by_outcome(meta: Sequence[Trajectory]) -> TrajectoryTable:
    """The meta set as training data: a domain of its own, each step labelled by the outcome, but
    for solutions of which step labels are known."""
    return TrajectoryTable.of(
        [
            replace(row, domain=META)
            if any(label is not None for label in row.step_labels or ())
            else replace(row, domain=META, step_labels=(float(bool(row.outcome)),) * len(row.steps))
            for row in meta
        ]
    )


def _evaluate(model: ProcessRewardModel, data: RunData, folder: Path) -> dict[str, Any]:
    """The numbers on the test set; the clearest picks are kept for the report."""
    if not data.test:
        return {}
    by_question = step_logits_of(model, data.test, progress="test")
    save_examples(folder / EXAMPLES_FILE, choose_examples(data.test, by_question))
    return evaluate_selection(data.test, by_question)
