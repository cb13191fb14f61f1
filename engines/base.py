"""Our Engine on betty's: a loop with progress, metrics, validation, checkpoints and resuming.

Each remedy names the defect of betty-ml 0.2.1 that it answers and has a test in
tests/test_engines_base.py that fails without it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from betty import configs as betty_configs
from betty import engine as betty_engine
from betty.envs import Env
from betty.logging import get_logger

from dreamprm.engines.early_stopping import EarlyStopping
from dreamprm.engines.environments import check_environment
from dreamprm.engines.interrupts import postponed_interrupts
from dreamprm.errors import UserError
from dreamprm.problems.base import Problem
from dreamprm.problems.finite import need_finite_state
from dreamprm.progress import progress_bar, show, unread_noted
from dreamprm.run_directory.checkpoints import (
    checkpoint_steps,
    load_latest_checkpoint,
    need_same_data,
    save_checkpoint,
)
from dreamprm.run_directory.metrics import MetricsLog
from dreamprm.run_directory.names import CHECKPOINTS
from dreamprm.run_directory.opening import note_run
from dreamprm.words import Words, as_json

log = logging.getLogger("dreamprm")


@dataclass
class EngineConfig(betty_configs.EngineConfig):
    """What betty's EngineConfig says, and where and how often to write.

    Attributes:
        train_iters: steps of the lowest level.
        valid_step: steps between two validations.
        strategy: the device: ``"default"`` (a GPU where there is one), ``"cpu"`` or ``"gpu"``; the
            config of a run calls it ``device``, and so do messages.
        early_stopping: stop when ``early_stopping_metric`` of the validation has not got better
            (``early_stopping_mode`` ``"min"`` or ``"max"``) in ``early_stopping_tolerance``
            validations in a row.
        run_directory: for metrics, TensorBoard and checkpoints; None writes nothing.
        log_every: steps over which the logged numbers are averaged.
        checkpoint_every: steps between two checkpoints; 0 for none but the last.
        keep_checkpoints: how many of the newest stay.
        progress: what the progress bar calls the run; None shows no bar.
    """

    run_directory: Path | None = None
    log_every: int = 10
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    progress: str | None = None

    def __post_init__(self) -> None:
        if self.strategy not in ("default", "cpu", "gpu"):
            raise UserError(
                f"device (strategy) is {self.strategy!r}, expected 'default', 'cpu' or 'gpu'"
            )
        if self.strategy == "gpu" and not torch.cuda.is_available():
            raise UserError("device is 'gpu', but torch sees no GPU here: device=cpu needs none")
        if self.early_stopping_mode not in ("min", "max"):
            raise UserError(
                f"early_stopping_mode is {self.early_stopping_mode!r}, expected 'min' or 'max'"
            )
        for name in ("valid_step", "log_every", "keep_checkpoints", "early_stopping_tolerance"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")


class Engine(betty_engine.Engine):
    """Runs linked problems; subclasses may say ``validation() -> dict`` and ``metrics() -> dict``.

    Args:
        problems: all of them.
        config: an :class:`EngineConfig`.
        dependencies: betty's ``{"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}``.
        env: a ``betty.envs.Env``, which every problem then has as ``self.env``; it is part of a
            checkpoint if it has ``state_dict``.
    """

    config: EngineConfig
    problems: list[Problem]
    words: Words = Words()  # what the report calls the things of the task

    def __init__(
        self,
        problems: list[Problem],
        config: EngineConfig,
        dependencies: dict[str, Any],
        env: Env | None = None,
    ) -> None:
        if not isinstance(config, EngineConfig):
            raise UserError(
                f"the engine got a {type(config).__module__}.{type(config).__name__}, "
                "expected a dreamprm.engines.base.EngineConfig"
            )
        names = [problem.name for problem in problems]
        for name in names:
            taken = any(hasattr(holder, name) for holder in (type(self), *problems))
            if taken or names.count(name) > 1:
                raise UserError(
                    f"a problem is named {name!r}, expected a name that no other problem and no "
                    "attribute of problems or engines has"
                )
        check_environment(env, problems)
        self.digests: dict[str, str] = {}  # of the data, by the name of the part
        self.validations: dict[int, dict[str, float]] = {}  # the numbers of each, by step
        # What the next line of the log is the mean of; part of a checkpoint.
        self.unlogged: dict[str, list[float]] = {}
        # betty announces every problem on standard output, at INFO.
        get_logger().setLevel(logging.WARNING)
        super().__init__(problems, config, dependencies, env)

    def set_dependency(self, dependencies: dict[str, Any]) -> None:
        """As betty's, which forgets that the problems now wait for others."""
        super().set_dependency(dependencies)
        for problem in self.problems:
            problem.ready = [False] * len(problem.children)

    def parse_config(self) -> None:
        """As betty's, with early stopping that works."""
        super().parse_config()
        if self.config.early_stopping:
            self.early_stopping = EarlyStopping(
                self.config.early_stopping_metric,
                self.config.early_stopping_mode,
                self.config.early_stopping_tolerance,
            )

    def check(self) -> None:
        """Raises where nothing must be written to the run directory; a run puts its own here."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log beside the problems' own; for subclasses."""
        return {}

    def figures(self) -> dict[str, Any]:
        """matplotlib figures to show in TensorBoard at every validation; for subclasses."""
        return {}

    def histograms(self) -> dict[str, list[float]]:
        """Values whose histograms TensorBoard shows at every validation; for subclasses."""
        return {}

    def charts(self) -> dict[str, str]:
        """Charts of several numbers in TensorBoard: for every title a pattern of names."""
        return {}

    def run(self) -> None:
        """Trains to ``train_iters``, from the last checkpoint if one was loaded.

        An interrupt (Ctrl-C, SIGTERM or SIGHUP) ends the run after the step under way, with a
        checkpoint, and is raised as KeyboardInterrupt then, with the number of the signal. So does
        that nobody reads the progress bar any longer, as BrokenPipeError.

        Raises:
            FloatingPointError: a number is not finite, before the first step or in one; see
                ``Problem.one_step_descent``.
        """
        self.train()
        # What could never be saved is found now, and not at the first checkpoint.
        self._need_finite({p.name: {"module": p.module.state_dict()} for p in self.problems})
        metrics = self._open_metrics()
        self._note(finished=False)
        bar = progress_bar(self.config.progress, self.train_iters, "step", self.global_step)
        stop = self.global_step >= self.train_iters or (
            self.early_stopping is not None and self.early_stopping.reached
        )
        with bar, postponed_interrupts() as interrupted, unread_noted() as unread:
            while not stop:
                self.global_step += 1
                with self._naming_step():
                    self.train_step()
                for problem in self.problems:
                    for name, value in problem.stats.items():
                        self.unlogged.setdefault(f"{problem.name}/{name}", []).append(value)
                    problem.stats = {}
                bar.update()
                stop = self.global_step >= self.train_iters
                if self.global_step % self.config.log_every == 0 or stop:
                    values = {name: sum(v) / len(v) for name, v in self.unlogged.items()}
                    self.unlogged.clear()
                    bar.set_postfix(
                        {k: f"{v:.3f}" for k, v in values.items() if k.endswith("/loss")},
                        refresh=False,
                    )
                    if metrics is not None:
                        metrics.write(
                            self.global_step, values | self._learning_rates() | self.metrics()
                        )
                if self.global_step % self.valid_step == 0 or stop:
                    with self._naming_step():
                        stop = self._validate(metrics) or stop
                due = self.config.checkpoint_every
                if stop or interrupted or unread or (due and self.global_step % due == 0):
                    if metrics is not None:
                        metrics.flush()
                    self.save()
                if interrupted or unread:
                    break
        if metrics is not None:
            metrics.close()
        self._note(finished=bool(stop))
        if interrupted:
            raise KeyboardInterrupt(interrupted.number)
        if unread:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def save(self) -> None:
        """Writes a checkpoint, where there is a run directory.

        Raises:
            FloatingPointError: a tensor of the state is not finite; nothing is written.
            UserError: it cannot be written.
        """
        if self.config.run_directory is None:
            return
        self.check()
        state = self.state_dict()
        self._need_finite(state["problems"])
        folder, keep = self.config.run_directory / CHECKPOINTS, self.config.keep_checkpoints
        save_checkpoint(folder, self.global_step, state, keep)

    def _need_finite(self, problems: dict[str, Any]) -> None:
        with self._naming_step():
            # Batches are the user's, and may have NaN for what is missing.
            need_finite_state("the state after it", problems, skip=("batches",))

    def resume(self) -> bool:
        """Continues from the newest checkpoint of the run directory; False where there is none."""
        folder = self.config.run_directory
        state = load_latest_checkpoint(folder / CHECKPOINTS) if folder is not None else None
        if state is None:
            return False
        self.load_state_dict(state)
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to continue: every problem, the step, the random states."""
        return {
            "step": self.global_step,
            "data": self.digests,
            "unlogged": {name: list(values) for name, values in self.unlogged.items()},
            "problems": {problem.name: problem.state_dict() for problem in self.problems},
            "early_stopping": (
                (self.early_stopping.best, self.early_stopping.since_best)
                if self.early_stopping is not None
                else None
            ),
            "env": self.env.state_dict() if hasattr(self.env, "state_dict") else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken.

        Raises:
            UserError: the checkpoint is of other problems, or of other data.
        """
        names = {problem.name for problem in self.problems}
        if names != set(state["problems"]):
            raise UserError(
                f"the checkpoint holds the problems {sorted(state['problems'])}, "
                f"expected {sorted(names)}"
            )
        need_same_data(state["data"], self.digests)
        self.global_step, self.unlogged = state["step"], dict(state["unlogged"])
        for problem in self.problems:
            problem.load_state_dict(state["problems"][problem.name])
        if self.early_stopping is not None and state["early_stopping"] is not None:
            self.early_stopping.best, self.early_stopping.since_best = state["early_stopping"]
        if state.get("env") is not None:
            self.env.load_state_dict(state["env"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])

    @contextmanager
    def _naming_step(self) -> Iterator[None]:
        """Says in which step of the run a FloatingPointError inside is, and what is left."""
        try:
            yield
        except FloatingPointError as error:
            where = f"step {self.global_step} of the run: {error}"
            if self.config.run_directory is not None:
                folder = self.config.run_directory / CHECKPOINTS
                steps = checkpoint_steps(folder)
                # One of a later step is of another run.
                if steps and steps[-1] < self.global_step:
                    where += f"; the newest checkpoint, {folder}/step-{steps[-1]}, is older"
            raise FloatingPointError(where) from error

    def _open_metrics(self) -> MetricsLog | None:
        if self.config.run_directory is None:
            return None
        return MetricsLog(self.config.run_directory, self.global_step, self.charts())

    def _note(self, finished: bool) -> None:
        """Says in the run directory what the run is of, and whether it came to its end."""
        if (folder := self.config.run_directory) is not None:
            about = {"words": as_json(self.words), "learned": len(self.problems) > 1}
            far = {"steps": self.train_iters, "step": self.global_step, "finished": finished}
            note_run(folder, about | far)

    def _learning_rates(self) -> dict[str, float]:
        return {
            f"{problem.name}/learning_rate": problem.optimizer.param_groups[0]["lr"]
            for problem in self.problems
        }

    def _validate(self, metrics: MetricsLog | None) -> bool:
        """One validation; True when early stopping says so."""
        stats: dict[str, float] = {}
        if self.is_implemented("validation"):
            self.eval()
            with torch.no_grad():
                stats = self.validation() or {}
            self.train()
            self.validations[self.global_step] = dict(stats)
            if metrics is None and stats:
                show(f"validation at step {self.global_step}", stats)
        if metrics is not None:
            if stats:
                values = {f"validation/{name}": value for name, value in stats.items()}
                metrics.write(self.global_step, values)
            for name, figure in self.figures().items():
                metrics.figure(self.global_step, name, figure)
            for name, numbers in self.histograms().items():
                metrics.histogram(self.global_step, name, numbers)
        if self.early_stopping is not None and self.early_stopping(stats):
            log.info("stopped early at step %d", self.global_step)
            return True
        return False
