"""A whole reweighting task from its parts, and how problems and engine are put together."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam
from torch.utils.data import default_collate

from dreamprm.data.batches import BatchStream, to_device
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError, unknown_name
from dreamprm.hypergradients import resolve
from dreamprm.hypergradients.interface import STEPS
from dreamprm.run_directory.names import MODEL, MODULE_FILE
from dreamprm.tasks.columns import Columns, training_rows
from dreamprm.tasks.config import OptimizerConfig, RunConfig
from dreamprm.tasks.corrections import corrections
from dreamprm.tasks.levels import adamw, engine_config, lower_config, upper_config
from dreamprm.tasks.schedules import build_schedule
from dreamprm.weighting import Rows, build_weighting
from dreamprm.weighting.labels import LabelTable
from dreamprm.weighting.row_parameters import RowParameters
from dreamprm.words import Words
from dreamprm.writing import whole_folder

log = logging.getLogger("dreamprm")

NAME, TEXT = "id", "text"  # columns that say what a row is called, and what is shown of it


@dataclass
class ReweightingTask:
    """A lower problem whose samples are weighted, the data of both levels, and what is measured.

    Attributes:
        config: of the run.
        model: makes the lower problem's module; called anew for every run, the seed set.
        lower: the class of the lower problem, a ``ReweightedProblem``; the upper one finds it as
            ``self.model``.
        upper: the class of the upper problem, a ``WeightingProblem``.
        train, meta: rows, each a dict of tensors and values, or :class:`Columns`.
        group: the column of ``train`` that groups are taken from, unless
            ``weighting_options.column`` says otherwise.
        labels: the column of ``train``, and entry of a batch, that holds the labels.
        truth: what the labels of the rows of ``train`` should be, for the summary of a run that
            learns labels: nothing is trained on it.
        validate: gives numbers of the module, at every validation; without a graph, in evaluation
            mode.
        measure: the same at the end of a run, for the summary; ``validate`` where it is not given.
        measure_weights: gives numbers of what the training rows count at the end of a run, [n], for
            the summary; not asked where every sample counts 1. See :meth:`row_weights`.
        collate: makes a batch of rows.
        words: in which the report and the tables speak.
        digests: of the data, by the name of the part; by default of all that the rows hold.
    """

    config: RunConfig
    model: Callable[[], nn.Module]
    lower: type
    upper: type
    train: Sequence[Mapping[str, Any]]
    meta: Sequence[Mapping[str, Any]]
    group: str = "domain"
    labels: str = "label"
    truth: Sequence[Any] | None = None
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None
    measure_weights: Callable[[Tensor], Mapping[str, float]] | None = None
    collate: Callable[[list[Any]], Any] = default_collate
    words: Words = field(default_factory=Words)
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = {"train": self.train}
        if self.config.learned or self.config.train_on != "train":
            wanted["meta"] = self.meta
        for name, rows in wanted.items():
            if not len(rows):
                raise UserError(f"the task's {name} has no rows")
        if not self.digests:
            self.digests = {
                "training data": digest(self.train),
                "meta set": digest(self.meta),
            }

    def engine(self, config: RunConfig, folder: Path) -> ReweightingEngine:
        """The engine of one run, a function of the seed."""
        torch.manual_seed(config.seed)
        train = training_rows(config.train_on, self.train, self.meta, self.group)
        stream = self._stream(train, config.lower, config.seed)
        return link(
            config,
            folder,
            module=self.model(),
            lower=self.lower,
            upper=self.upper,
            train=stream,
            meta=lambda: self._stream(self.meta, config.upper, config.seed),
            rows=rows_of(train, self.group, lambda: stream.collated([0]), self.labels),
            validate=self.validate,
        )

    def end(self, engine: ReweightingEngine, folder: Path) -> dict[str, Any]:
        """Saves the lower module's tensors, and gives the numbers of a run that has ended."""
        measure = self.measure or self.validate
        engine.lower.module.eval()
        with torch.no_grad():
            found = measure(engine.lower.module) if measure is not None else {}
            numbers: dict[str, Any] = dict(found)
            measured = self.measure_weights is not None and engine.weights_from is not None
            measured = measured and engine.row_labels() is None  # which count 1 all
            if measured and self.config.train_on == "train":  # else the rows are others
                assert self.measure_weights is not None
                numbers |= self.measure_weights(self.row_weights(engine))
        with whole_folder(folder / MODEL, last=MODULE_FILE) as written:
            save_model(engine.lower.module, str(written / MODULE_FILE))
        labels = engine.row_labels()
        if labels is not None and self.truth is not None and self.config.train_on != "meta":
            numbers |= corrections(
                labels, map(_plain, self.truth)
            )  # meta rows are behind those of training
        return numbers

    @torch.no_grad()
    def row_weights(self, engine: ReweightingEngine) -> Tensor:
        """What every training row counts, [n], on the CPU.

        Where the weighting does not say it of all rows at once, a row counts what it does in a
        batch of its neighbours, as large as those of the lower level.
        """
        known = engine.row_weights()
        if known is not None:
            return known.cpu()
        stream = self._stream(self.train, self.config.lower, self.config.seed)
        places = torch.arange(len(self.train)).split(stream.batch_size)
        found = []
        for part in places:
            batch = to_device(stream.collated(part.tolist()), engine.lower.device)
            batch = engine.lower.corrected(batch)
            losses = engine.lower.sample_losses(batch)
            found.append(engine.lower.sample_weights(batch, losses).cpu())
        return torch.cat(found)

    def facts(self) -> dict[str, Any]:
        """Nothing beside the numbers."""
        return {}

    def _stream(self, rows: Sequence[Any], config: OptimizerConfig, seed: int) -> BatchStream:
        size = min(config.batch_size // config.accumulate, len(rows))
        gather = None
        if isinstance(rows, Columns) and self.collate is default_collate:
            gather = rows.batch
        return BatchStream(rows, size, self.collate, seed, gather=gather)


def rows_of(
    train: Sequence[Mapping[str, Any]],
    group: str,
    example: Callable[[], Any],
    labels: str = Rows.labels,
) -> Rows:
    """What weightings may ask of training rows that are dicts."""
    known = list(train.columns if isinstance(train, Columns) else train[0])

    def column(name: str) -> list[Any]:
        if name not in known:
            raise UserError(unknown_name("column of the training data", name, known))
        if isinstance(train, Columns):
            return _values(train.columns[name])
        return [_plain(row[name]) for row in train]

    def names() -> list[str]:
        return (
            [str(n) for n in column(NAME)] if NAME in known else list(map(str, range(len(train))))
        )

    def text(place: int) -> str:
        row = train[place]
        return (
            str(row[TEXT])
            if TEXT in row
            else ", ".join(
                f"{key} {_plain(value)}" for key, value in row.items() if _is_short(value)
            )
        )

    return Rows(len(train), column, names, text, example, group, labels)


def link(
    config: RunConfig,
    folder: Path,
    *,
    module: nn.Module,
    lower: Callable[..., Any],
    upper: Callable[..., Any],
    train: Any,
    meta: Callable[[], Any],
    rows: Rows,
    engine: Callable[..., Any] = ReweightingEngine,
    **parts: Any,
) -> Any:
    """The two problems of a reweighting task with their optimizers, and the engine that runs them.

    Args:
        config: of the run; says the weighting and the hypergradient.
        folder: the engine's run directory.
        module: of the lower problem.
        lower, upper: make the problems, from ``config=``, ``module=``, ``optimizer=``,
            ``scheduler=`` and ``train_data_loader=``; the lower one also takes ``fixed=``.
        train: the lower problem's loader.
        meta: makes the upper problem's, where there is one.
        rows: what the weighting is built for.
        engine: makes the engine from both problems, its config and ``parts``.
    """
    weights = build_weighting(config.weighting, rows, config.weighting_options)
    learned = config.learned
    optimizer: Optimizer = adamw(module.parameters(), config.lower)
    lower_problem = lower(
        config=lower_config(config),
        module=module,
        optimizer=optimizer,
        scheduler=build_schedule(optimizer, config.lower, config.steps),
        train_data_loader=train,
        fixed=None if learned else weights,
    )
    upper_problem = None
    if learned:
        assert weights is not None
        optimizer = _upper_optimizer(weights, config)
        upper_problem = upper(
            config=upper_config(config),
            module=weights,
            optimizer=optimizer,
            scheduler=build_schedule(optimizer, config.upper, config.upper_steps),
            train_data_loader=meta(),
        )
    made = engine(lower_problem, upper_problem, engine_config(config, folder), **parts)
    made.rows = rows
    return made


def _upper_optimizer(weights: nn.Module, config: RunConfig) -> Optimizer:
    """Of a table of rows, one that touches the rows of a batch alone, unless all are asked for."""
    if not isinstance(weights, RowParameters):
        return adamw(weights.parameters(), config.upper)
    if isinstance(weights, LabelTable) and config.upper.weight_decay:
        log.warning(
            "upper.weight_decay=%g would pull labels to 0: labels do not decay",
            config.upper.weight_decay,
        )
        config = replace(config, upper=replace(config.upper, weight_decay=0.0))
    # Decay and clipping look at all rows, and the steps that were taken at those of other batches.
    unrolls = STEPS in resolve(config.hypergradient).needs
    weights.by_rows = not (config.upper.weight_decay or config.upper.clip or unrolls)
    if not weights.by_rows:
        return adamw(weights.parameters(), config.upper)
    return SparseAdam(list(weights.parameters()), lr=config.upper.learning_rate)


def digest(rows: Sequence[Any]) -> str:
    """A digest of all that rows hold: arrays by their bytes, what has no other form pickled."""
    found = hashlib.sha256()
    for part in [rows.columns] if isinstance(rows, Columns) else rows:
        _take(part, found)
    return found.hexdigest()


def _take(value: Any, found: Any) -> None:
    if isinstance(value, Tensor | np.ndarray):
        found.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        if isinstance(value, Tensor):
            # As bytes, whatever the type: numpy has no bfloat16.
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(value.tobytes())
    elif isinstance(value, Mapping):
        for name, each in value.items():
            found.update(f"{name!r}:".encode())
            _take(each, found)
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)} of:".encode())
        for each in value:
            _take(each, found)
    elif value is None or isinstance(value, str | int | float):
        found.update(f"{value!r}\n".encode())
    else:
        found.update(pickle.dumps(value))


def _values(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, Tensor) else list(column)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _is_short(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1
