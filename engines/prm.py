"""DreamPRM from a config to a run directory: data, model, two linked problems, engine, table."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dreamprm.config import Config, OptimizerConfig
from dreamprm.data.sources import RunData, load_data, usable_meta, usable_train
from dreamprm.data.trajectory import Trajectory
from dreamprm.engines.base import EngineConfig
from dreamprm.engines.batches import meta_batches, train_batches
from dreamprm.engines.observing import Observer, build_observer
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.hypergradients import resolve
from dreamprm.hypergradients.interface import STEPS
from dreamprm.inference.evaluation import evaluate_selection
from dreamprm.inference.selection import step_logits_of
from dreamprm.models.build import build_model
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.weighting import DomainTable
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.prm import DomainWeighting, PRMFineTuning
from dreamprm.reporting import write_report
from dreamprm.reporting.examples import choose_examples, save_examples
from dreamprm.run_directory import (
    BASELINE,
    BUILT_IN,
    CONFIG_FILE,
    EXAMPLES_FILE,
    MODEL,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    open_run,
    refuse_many_processes,
)
from dreamprm.tasks.prm.words import WORDS
from dreamprm.training.schedules import build_schedule
from dreamprm.writing import write_whole

log = logging.getLogger("dreamprm")

# Where the data lie may change: what they are is in the checkpoint.
DATA_FILES = ("data.root", "data.train", "data.meta", "data.test")


class PRMEngine(ReweightingEngine):
    """Validates as its observer says: on the meta set, and what it looks at beside that."""

    words = WORDS

    def __init__(
        self,
        *args: Any,
        observer: Observer,
        digests: dict[str, str],
        check: Callable[[], None] = lambda: None,
        **parts: Any,
    ) -> None:
        self.observer, self.digests, self.check = observer, digests, check
        super().__init__(*args, **parts)

    def save(self) -> None:
        """As of every engine, where the run directory is still there."""
        self.check()
        super().save()

    def state_dict(self) -> dict[str, Any]:
        """As of every engine, and what data it is of."""
        return super().state_dict() | {"data": self.digests}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues on the same data.

        Raises:
            UserError: the checkpoint is of other data.
        """
        before = state["data"]
        if not isinstance(before, dict):
            raise UserError("the checkpoint is of a version of dreamprm whose digests are others")
        changed = [name for name, digest in self.digests.items() if before[name] != digest]
        if changed:
            raise UserError(
                f"the data are not those that the run was begun with: other {', '.join(changed)}; "
                "bring them back, give another out=, or --overwrite the run"
            )
        super().load_state_dict(state)

    def validation(self) -> dict[str, float]:
        """See :meth:`~dreamprm.engines.observing.Observer.look`."""
        return self.observer.look(self.lower.module)

    def histograms(self) -> dict[str, list[float]]:
        """The step scores of every domain."""
        return self.observer.histograms

    def figures(self) -> dict[str, Any]:
        """The weights, and solutions with their scores."""
        return super().figures() | self.observer.figures()

    def charts(self) -> dict[str, str]:
        """The weights in one chart, the selection by N in another."""
        return super().charts() | {"selection (best of N)": r"validation/(test|meta)_best_of_\d+"}


def train(config: Config, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Runs a config and writes its run directory.

    Args:
        config: the experiment.
        resume: continue a run that was interrupted; starts anew where there is none.
        overwrite: replace a run that is there.

    Returns:
        what ``summary.json`` holds: ``runs``, for each weighting the numbers of
        ``evaluate_selection``; ``weights`` by domain; ``qualities`` of the built-in domains.

    Raises:
        UserError: the config, the data or the run directory is not as it must be.
    """
    refuse_many_processes()
    out = Path(config.out)
    with open_run(out, config, resume, overwrite, free=DATA_FILES) as run:
        data = load_data(config.data, out, config.seed, redraw=not run.continues)
        engine = build_engine(config, data, out, run.check)
        if run.continues:
            _resume(engine)
        run.begin(keep=(BUILT_IN,) if data.built_in else ())
        if data.built_in:
            data.built_in.save(out / BUILT_IN)
        numbers, weights = _run(engine, data, out)
        runs = {config.weighting: numbers}
        if config.weighting != "uniform" and config.baseline:
            plain = replace(config, weighting="uniform")
            engine = build_engine(plain, data, out / BASELINE, run.check)
            _resume(engine)
            uniform, _ = _run(engine, data, out / BASELINE)
            runs = {"uniform": uniform} | runs
        summary = {
            "config": str(out / CONFIG_FILE),
            "meta_loss": config.meta_loss,
            "hypergradient": config.hypergradient,
            "seed": config.seed,
            "runs": runs,
            "weights": weights,
            "qualities": dict(config.data.synthetic.domains),
            "data": data.digests,
            "versions": _versions(),
        }
        run.check()
        _write_json(out / SUMMARY_FILE, summary)
        write_report(out)
    return summary


def _resume(engine: PRMEngine) -> None:
    if engine.resume():
        log.info("%s continues after step %d", engine.config.run_directory, engine.global_step)


def _run(engine: PRMEngine, data: RunData, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains one reward model; gives its numbers on the test set, and the domain weights."""
    (batches,) = engine.lower.train_data_loader
    engine.run()
    if batches.left_out:
        log.warning(
            "%d solutions longer than data.max_tokens were left out when they were drawn",
            batches.left_out,
        )
    model: ProcessRewardModel = engine.lower.module
    engine.check()
    model.save_pretrained(folder / MODEL)
    weights = engine.weights()
    if weights:
        _write_json(folder / WEIGHTS_FILE, weights)
    return _evaluate(model, data, folder), weights


def build_engine(
    config: Config, data: RunData, folder: Path, check: Callable[[], None] = lambda: None
) -> PRMEngine:
    """The model, the problems and the engine of one run, all a function of the config's seed.

    Args:
        config: of the run.
        data: of the run.
        folder: the engine's run directory.
        check: is called before anything is written there, and raises where that must not be.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model, data.train, config.seed)
    encode = model.encoder(data.domains)

    def fits(row: Trajectory) -> bool:
        return len(encode.tokens(row)[0]) <= config.data.max_tokens

    # Of data on disk, lengths are looked at when a solution is drawn: all of them take too long.
    later = data.streamed and config.lower.max_tokens is None
    rows = usable_train(data.train, None if later else fits)
    learned = config.weighting != "uniform"
    # A plain run needs no meta set, but validates on one that is there.
    meta = usable_meta(data.meta, fits) if data.meta or learned else []
    if learned and len(data.domains) == 1:
        log.warning("there is only one domain, %r: its weight stays 1", data.domains[0])
    upper_config = ProblemConfig(
        precision=config.precision,
        gradient_clipping=config.upper.clip,
        gradient_accumulation=config.upper.accumulate,
    )
    lower_config = ProblemConfig(
        type=config.hypergradient,
        options=config.hypergradient_options,
        fidelity_every=config.fidelity.every,
        unroll_steps=config.unroll_steps,
        precision=config.precision,
        gradient_clipping=config.lower.clip,
        gradient_accumulation=config.lower.accumulate,
        hypergradient_batch_size=_hypergradient_batch_size(config),
    )
    optimizer = _adamw([p for p in model.parameters() if p.requires_grad], config.lower)
    lower = PRMFineTuning(
        lower_config,
        step_loss=config.step_loss,
        module=model,
        optimizer=optimizer,
        scheduler=build_schedule(optimizer, config.lower, config.steps),
        train_data_loader=train_batches(config, rows, encode, fits if later else None),
    )
    upper = None
    if learned:
        table = DomainTable(data.domains)
        optimizer = _adamw(table.parameters(), config.upper)
        upper = DomainWeighting(
            upper_config,
            meta_loss=config.meta_loss,
            options=config.meta_loss_options,
            module=table,
            optimizer=optimizer,
            scheduler=build_schedule(optimizer, config.upper, config.steps // config.unroll_steps),
            train_data_loader=meta_batches(
                meta,
                config.meta_loss,
                config.upper.batch_size // config.upper.accumulate,
                encode,
                config.seed,
            ),
        )
    return PRMEngine(
        lower,
        upper,
        EngineConfig(
            train_iters=config.steps,
            valid_step=config.validate_every,
            strategy=config.device,
            early_stopping=config.early_stopping.patience > 0,
            early_stopping_metric=config.early_stopping.metric,
            early_stopping_mode=config.early_stopping.mode,
            early_stopping_tolerance=max(1, config.early_stopping.patience),
            run_directory=folder,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            progress="uniform" if upper is None else "learned",
        ),
        observer=build_observer(config.observe, rows, meta, data.test, fits),
        digests=data.digests,
        check=check,
    )


def _hypergradient_batch_size(config: Config) -> int:
    """0, for all, where the method goes through the steps that were taken."""
    size = config.hypergradient_batch_size
    if size and STEPS in resolve(config.hypergradient).needs:
        log.warning(
            "hypergradient=%s differentiates the steps that were taken, with all of their batches: "
            "hypergradient_batch_size=%d is not for it",
            config.hypergradient,
            size,
        )
        return 0
    return size


def _evaluate(model: ProcessRewardModel, data: RunData, folder: Path) -> dict[str, Any]:
    """The numbers on the test set; the clearest picks are kept for the report."""
    if not data.test:
        return {}
    by_question = step_logits_of(model, data.test, progress="test")
    save_examples(folder / EXAMPLES_FILE, choose_examples(data.test, by_question))
    return evaluate_selection(data.test, by_question)


def _versions() -> dict[str, str]:
    """What the numbers were made with."""
    names = ("dreamprm", "torch", "transformers", "betty-ml")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _adamw(parameters: Any, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        bad = [k for k, v in value.items() if isinstance(v, float) and not math.isfinite(v)]
        what = f": {bad[0]!r} is {value[bad[0]]}" if bad else ""
        raise FloatingPointError(f"{path} would not be finite{what}") from error
    write_whole(path, [text])
