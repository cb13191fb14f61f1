"""What a hypergradient method is, and what it is given: all other files here build on this one.

A method turns v = ∇_φ M, the upper loss's gradient with respect to the lower parameters, into the
indirect term of dM/dα: what M changes by because α changes φ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from dreamprm.errors import UserError, unknown_name
from dreamprm.hypergradients.updates import Rule, State
from dreamprm.hypergradients.vectors import Tensors

Loss: TypeAlias = Callable[[Tensors, Tensors], Tensor]

OPTIMIZER, STEPS, UPPER_LOSS = "the lower optimizer", "the lower steps taken", "the upper loss"


@dataclass(frozen=True)
class LowerStep:
    """A step of the lower problem, φ' = U(φ, g, s), as it was before it was taken.

    Attributes:
        rules, state, clip: of U; see updates.py.
        gradient: g = ∇_φ L, not clipped yet; None where nobody has it.
        lower: φ.
        loss: L of this step's batch, drawing this step's random numbers.
        adjoint: what M changes by φ in other ways than through the steps from here on; None for
            nothing.
    """

    rules: Sequence[Rule]
    state: State
    clip: float = 0.0
    gradient: Tensors | None = None
    lower: Tensors | None = None
    loss: Loss | None = None
    adjoint: Tensors | None = None


@dataclass(frozen=True)
class Point:
    """Where a hypergradient is taken, and what is known there.

    Attributes:
        lower_loss: L(φ, α), a scalar; draws the same random numbers at every evaluation.
        lower: φ.
        upper: α.
        bits: of the mantissa of the coarsest arithmetic that the lower loss runs in.
        upper_loss: M(φ, α); for methods that need ``UPPER_LOSS``.
        next_step: the step that the lower optimizer would take at φ; for those that need
            ``OPTIMIZER``.
        steps: the last steps that led to φ, oldest first; for those that need ``STEPS``.
        memory: what methods note for the next hypergradient of the same problem, by a name each:
            plain values and tensors, which are a part of checkpoints.
        path: names the path from the upper loss through the problem to α; what a method notes of
            it alone has the path in its name, since several may lead through one problem.
    """

    lower_loss: Loss
    lower: Tensors
    upper: Tensors
    bits: int
    upper_loss: Loss | None = None
    next_step: LowerStep | None = None
    steps: Sequence[LowerStep] = ()
    memory: dict[str, Any] = field(default_factory=dict)
    path: str = ""


class Method(Protocol):
    """A hypergradient method.

    Attributes:
        name: as in configs.
        source: the paper.
    """

    @property
    def name(self) -> str:
        """As in configs."""

    @property
    def source(self) -> str:
        """The paper."""

    @property
    def needs(self) -> frozenset[str]:
        """What of a :class:`Point` is needed beyond L, φ and α."""

    @property
    def uses_curvature(self) -> bool:
        """Whether it takes L's curvature for H: right where no problem below answers to φ."""

    @property
    def options(self) -> dict[str, Any]:
        """The options there are, with their defaults."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises a UserError for options that the method does not have, or of a wrong value."""

    def indirect(self, point: Point, vector: Tensors, options: Mapping[str, Any]) -> Tensors:
        """The indirect term for ``vector`` v, shaped as α; v is finite, the options not checked."""


@dataclass(frozen=True)
class DirectMethod:
    """A method that is one function, ``term(point, vector, **options)``.

    Attributes:
        name, source, needs, uses_curvature: see :class:`Method`.
        term: gives the indirect term; its keyword-only arguments are the options. It should refuse
            wrong values before it looks at the point or evaluates a loss.
    """

    name: str
    term: Callable[..., Tensors]
    source: str = ""
    needs: frozenset[str] = frozenset()
    uses_curvature: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The keyword-only arguments of ``term``."""
        return keywords(self.term)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuses unknown options, and what ``term`` refuses before it evaluates a loss."""
        refuse_unknown_options(f"hypergradient method {self.name!r}", options, self.options)
        stopping = Point(_stop, [], [], bits=52, upper_loss=_stop)
        with suppress(Stopped):
            self.term(stopping, [], **options)

    def indirect(self, point: Point, vector: Tensors, options: Mapping[str, Any]) -> Tensors:
        """What ``term`` gives."""
        refuse_unknown_options(f"hypergradient method {self.name!r}", options, self.options)
        return self.term(point, vector, **options)


class Stopped(Exception):
    """A method that was only to check its options has come as far as evaluating something."""


def _stop(*args: object) -> Tensor:
    raise Stopped


def keywords(function: Callable[..., Any], but: Iterable[str] = ()) -> dict[str, Any]:
    """The keyword-only arguments of a function and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in but}


def refuse_unknown_options(of: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Refuses options that something does not have.

    Args:
        of: what has the options, with its name.
        found: the names of the given ones.
        known: those that there are.

    Raises:
        UserError: names the first one, and those that there are.
    """
    known = list(known)
    for name in found:
        if name not in known:
            raise UserError(
                unknown_name(f"option of {of}", name, known)
                if known
                else f"{of} has no options, found {name!r}"
            )
