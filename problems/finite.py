"""Numbers that are not finite are named before an optimizer steps on them or a file holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamprm.hypergradients.finite import is_finite

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem

ROWS = 8  # that a message names


def need_finite(
    what: str,
    tensors: Sequence[Tensor | None],
    name_of: Callable[[int], str],
    order: float = math.inf,
) -> None:
    """Refuses tensors that are not finite; one reduction over all of them, one synchronisation.

    Args:
        what: the tensors are, for the message.
        tensors: floating-point ones, of any shapes; None are passed over.
        name_of: the name of the i-th of them.
        order: of the norm. By 2, entries whose squares overflow are refused too: clipping would
            take the whole gradient for 0, and Adam's second moment would be infinite for good.

    Raises:
        FloatingPointError: names the first tensor that is not finite, and counts the others.
    """
    values = [_values(tensor) for tensor in tensors]
    if is_finite(values, order):
        return
    bad = [i for i, value in enumerate(values) if not value.isfinite().all()]
    if not bad:
        sizes = [float(value.abs().max()) if value.numel() else 0.0 for value in values]
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        raise FloatingPointError(
            f"{what} is too large: its norm overflows, "
            f"with an entry of {sizes[largest]:.3g} in {name_of(largest)!r}"
        )
    value = values[bad[0]]
    found = float(value[~value.isfinite()][0])
    more = f", the first of {len(bad)} of {len(values)} tensors" if len(bad) > 1 else ""
    raise FloatingPointError(f"{what} is {found} in {name_of(bad[0])!r}{more}")


def need_finite_state(what: str, state: Any, skip: Sequence[str] = ()) -> None:
    """Refuses a state with a tensor that is not finite.

    Args:
        what: the state is, for the message.
        state: mappings, lists and tuples of anything; only floating-point tensors are looked at.
        skip: keys whose values may hold anything.

    Raises:
        FloatingPointError: names the place of the first tensor that is not finite.
    """
    found = dict(_tensors(state, skip))
    names = list(found)
    need_finite(what, list(found.values()), names.__getitem__)


def _tensors(state: Any, skip: Sequence[str], path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        # torch computes no norm of the formats of one byte, which hold frozen weights only.
        if state.is_floating_point() and state.dtype.itemsize > 1:
            yield path, state
        return
    if isinstance(state, Mapping):
        pairs: Any = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)
    else:
        return
    for key, value in pairs:
        if key not in skip:
            yield from _tensors(value, skip, f"{path}.{key}" if path else str(key))


def _values(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        return torch.empty(0)
    return tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()


def check_vector(problem: Problem, below: Problem, vector: Sequence[Tensor]) -> None:
    """Refuses the gradient of a problem's loss with respect to the parameters of one below."""
    with naming(problem):
        need_finite(f"its gradient at {below.name!r}", vector, _names(below), order=2)


def check_gradient(problem: Problem) -> None:
    """Refuses the gradient that an optimizer is about to take its step with."""
    gradient = [p.grad for p in problem.trainable_parameters()]
    with naming(problem):
        need_finite("the gradient", gradient, _names(problem), order=2)


def check_parameters(problem: Problem) -> None:
    """Refuses the parameters after a step.

    A finite gradient does not imply them: the learning rate, the optimizer or a callback may
    overflow. It reads the parameters once, beside the seven times that AdamW reads and writes
    tensors of their size.
    """
    with naming(problem):
        parameters = problem.trainable_parameters()
        need_finite("the parameter after the step", parameters, _names(problem))


def _names(problem: Problem) -> Callable[[int], str]:
    def name_of(index: int) -> str:
        wanted = problem.trainable_parameters()[index]
        named = problem.module.named_parameters()
        return next((name for name, p in named if p is wanted), f"no. {index}")

    return name_of


@contextmanager
def naming(problem: Problem, on: Problem | None = None, batch: int | None = None) -> Iterator[None]:
    """Says of which problem, step and rows a FloatingPointError inside is.

    Args:
        problem: whose step it is.
        on: the problem whose last step's rows are named; the same one where it is None.
        batch: which of the step's micro-batches; all of them where it is None.
    """
    try:
        yield
    except FloatingPointError as error:
        on = on or problem
        through = "" if on is problem else f", hypergradient through {on.name!r}"
        raise FloatingPointError(
            f"step {problem.count} of problem {problem.name!r}{through}: {error}"
            f"{_shown(_rows(on, batch))}"
        ) from error


def _rows(problem: Problem, batch: int | None) -> list[str]:
    """What the rows of the last step are called, where the data loaders can tell."""
    rows: list[str] = []
    for loader in problem.train_data_loader or ():
        names = getattr(loader, "recent_names", None)
        if names is not None:
            batches = names(len(problem.batches))
            rows += batches[batch] if batch is not None else [n for each in batches for n in each]
    return rows


def _shown(rows: list[str]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - ROWS} more" if len(rows) > ROWS else ""
    return f"; the batch: {', '.join(rows[:ROWS])}{more}"
