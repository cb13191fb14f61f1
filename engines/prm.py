"""DreamPRM from a config to a run directory: data, model, two linked problems, engine, table."""

from __future__ import annotations

import json
import logging
import math
import platform
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dreamprm.config import Config, OptimizerConfig
from dreamprm.config_reading import save_config
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
from dreamprm.reporting import REPORT_FILE, write_report
from dreamprm.reporting.examples import EXAMPLES_FILE, choose_examples, save_examples
from dreamprm.training.metrics import METRICS_FILE
from dreamprm.training.schedules import build_schedule

log = logging.getLogger("dreamprm")

CONFIG_FILE, SUMMARY_FILE, WEIGHTS_FILE = "config.yaml", "summary.json", "weights.json"
RUN_FOLDERS = ("checkpoints", "model", "synthetic", "tensorboard", "uniform")
RUN_FILES = (
    CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, WEIGHTS_FILE, EXAMPLES_FILE, REPORT_FILE
)  # fmt: skip


class PRMEngine(ReweightingEngine):
    """Validates as its observer says: on the meta set, and what it looks at beside that."""

    def __init__(self, *args: Any, observer: Observer, digest: str, **parts: Any) -> None:
        self.observer, self.digest = observer, digest
        super().__init__(*args, **parts)

    def state_dict(self) -> dict[str, Any]:
        """As of every engine, and what data it is of."""
        return super().state_dict() | {"data": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues on the same data.

        Raises:
            UserError: the checkpoint is of other data.
        """
        if state["data"] != self.digest:
            raise UserError(
                "the data are not those that the run was begun with: --overwrite starts anew"
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
    out = Path(config.out)
    _prepare(out, config, resume, overwrite)
    data = load_data(config.data, out, config.seed)
    engine = build_engine(config, data, out)
    # Only now is it a run: a mistake that was found before leaves nothing to overwrite.
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    save_config(config, out / CONFIG_FILE)
    numbers, weights = _run(engine, data, out)
    runs = {config.weighting: numbers}
    if config.weighting != "uniform" and config.baseline:
        engine = build_engine(replace(config, weighting="uniform"), data, out / "uniform")
        uniform, _ = _run(engine, data, out / "uniform")
        runs = {"uniform": uniform} | runs
    summary = {
        "config": str(out / CONFIG_FILE),
        "meta_loss": config.meta_loss,
        "hypergradient": config.hypergradient,
        "seed": config.seed,
        "runs": runs,
        "weights": weights,
        "qualities": dict(config.data.synthetic.domains),
        "test_digest": data.test_digest,
        "versions": _versions(),
    }
    _write_json(out / SUMMARY_FILE, summary)
    write_report(out)
    return summary


def _run(engine: PRMEngine, data: RunData, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains one reward model; gives its numbers on the test set, and the domain weights."""
    (batches,) = engine.lower.train_data_loader
    if engine.resume():
        log.info("%s continues after step %d", folder, engine.global_step)
    engine.run()
    if batches.left_out:
        log.warning(
            "%d solutions longer than data.max_tokens were left out when they were drawn",
            batches.left_out,
        )
    model: ProcessRewardModel = engine.lower.module
    model.save_pretrained(folder / "model")
    weights = engine.weights()
    if weights:
        _write_json(folder / WEIGHTS_FILE, weights)
    return _evaluate(model, data, folder), weights


def build_engine(config: Config, data: RunData, folder: Path) -> PRMEngine:
    """The model, the problems and the engine of one run, all a function of the config's seed."""
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
        digest=data.digest,
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


def _prepare(out: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Makes the run directory ready, and refuses to lose what is in it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder for the run")
    if not out.exists():
        return  # made when it is known that there is something to run
    if (out / CONFIG_FILE).is_file():
        if resume:
            _refuse_changes(out / CONFIG_FILE, config)
            return
        if not overwrite:
            raise UserError(
                f"{out} holds a run: --resume continues it, --overwrite replaces it, "
                "out=DIR starts another"
            )
        for name in RUN_FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in RUN_FILES:
            (out / name).unlink(missing_ok=True)
        return
    # The built-in domains of a start that failed may be there; nothing else is ours.
    foreign = sorted(path.name for path in out.iterdir() if path.name != "synthetic")
    if foreign:
        raise UserError(f"{out} holds {foreign[0]}, which is of no run: expected an empty folder")


def _refuse_changes(saved: Path, config: Config) -> None:
    """A resumed run must be the same experiment, but for where it runs and what it shows."""
    before = OmegaConf.to_container(OmegaConf.load(saved))
    now = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(before, dict)
    assert isinstance(now, dict)
    free = ("out", "device", "log_every", "checkpoint_every", "observe")
    changed = [str(k) for k in now if k not in free and before.get(k) != now[k]]
    if changed:
        raise UserError(
            f"{saved} differs from this config in {', '.join(changed)}: "
            "resume with the same values, or give another out="
        )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        bad = [k for k, v in value.items() if isinstance(v, float) and not math.isfinite(v)]
        what = f": {bad[0]!r} is {value[bad[0]]}" if bad else ""
        raise FloatingPointError(f"{path} would not be finite{what}") from error
    path.write_text(text + "\n")
