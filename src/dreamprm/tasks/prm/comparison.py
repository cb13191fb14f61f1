"""The demo's reward model, as cases on which hypergradient methods are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import nn

from dreamprm.engines.comparison import case_of
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.hypergradients.comparison import Case
from dreamprm.tasks.comparison import brief_config, cases_of, run_briefly

NAME = "prm"
DROPOUT = 0.1
SMALL = (
    *("data.synthetic.solutions=100", "data.synthetic.meta=64", "data.synthetic.questions=1"),
    *("lower.batch_size=16", "upper.batch_size=32"),
)


def demo_briefly(progress: str | None = None) -> AbstractContextManager[ReweightingEngine]:
    """The engine of a small demo after a few steps."""
    return run_briefly(brief_config("demo", SMALL), progress and f"{progress}: the demo's model")


def demo_cases(engine: ReweightingEngine) -> list[Case]:
    """The demo's reward model in fp32, under bf16 autocast, and with dropout."""
    return [*cases_of(engine, NAME), with_dropout(engine, f"{NAME}, dropout", DROPOUT)]


def with_dropout(engine: ReweightingEngine, name: str, rate: float, **arithmetic: Any) -> Case:
    """A reward model of an engine, with a dropout of its attention; see :func:`case_of`."""
    around = partial(attention_dropout, engine.lower.module, rate)
    return case_of(engine, name, around=around, **arithmetic)


@contextmanager
def attention_dropout(model: nn.Module, rate: float) -> Iterator[None]:
    """The model in training mode with this dropout of its attention."""
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "attention_dropout")]
    before = [layer.attention_dropout for layer in layers]
    for layer in layers:
        layer.attention_dropout = rate
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.attention_dropout = old
