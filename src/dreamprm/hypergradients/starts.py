"""Where a solver with a memory starts: at the q that the last hypergradient of its path ended with.

A solver that says ``start`` is given that q, None for the first one. Where ``start`` has no
default, that is how the solver works; where it has, the method built on it has an option
``warm_start`` instead, False by default, and keeps nothing without it (AmIGO, Arbel & Mairal 2022,
arXiv 2111.14580).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from dreamprm.errors import UserError
from dreamprm.hypergradients.finite import is_finite
from dreamprm.hypergradients.interface import Point, keywords
from dreamprm.hypergradients.vectors import Tensors

log = logging.getLogger("dreamprm")

START, WARM_START = "start", "warm_start"


def options_of_start(solver: Callable[..., Tensors]) -> dict[str, Any]:
    """``warm_start``, where the solver can do with a start and without one."""
    default = keywords(solver).get(START, Parameter.empty)
    return {} if default is Parameter.empty else {WARM_START: False}


def keeps_start(solver: Callable[..., Tensors], options: Mapping[str, Any]) -> bool:
    """Whether the solver goes on from where it ended.

    Raises:
        UserError: ``warm_start`` is neither True nor False.
    """
    warm = options.get(WARM_START, False)
    if not isinstance(warm, bool):
        raise UserError(f"{WARM_START} is {warm!r}, expected true or false")
    return START in keywords(solver) and (warm or not options_of_start(solver))


def last_q(point: Point, vector: Tensors) -> Tensors | None:
    """The q that this path ended with, of the type and on the device of v.

    None at the first one, and where the lower parameters have other shapes than then.
    """
    found: Tensors | None = point.memory.get(_key(point))
    if found is None:
        return None
    shapes, expected = ([tuple(t.shape) for t in ts] for ts in (found, vector))
    if shapes != expected:
        log.info("the solver starts anew: the lower parameters are no longer of the same shapes")
        return None
    return [q.to(v) for q, v in zip(found, vector, strict=True)]


def keep_q(point: Point, q: Tensors, name: str) -> None:
    """Keeps q for the next hypergradient of this path.

    Args:
        point: of the hypergradient.
        q: what the solver gave.
        name: of the method.

    Raises:
        FloatingPointError: q is not finite; the one before is kept.
    """
    if not is_finite(q):
        raise FloatingPointError(f"the q of hypergradient method {name!r} is not finite")
    point.memory[_key(point)] = [x.detach() for x in q]


def _key(point: Point) -> str:
    return f"q along {point.path}" if point.path else "q"
