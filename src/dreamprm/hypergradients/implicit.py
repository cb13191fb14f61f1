"""Implicit differentiation: −(∂²L/∂α∂φ)ᵀ q with q ≈ H⁻¹ v, a solver and a product."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from dreamprm.errors import UserError
from dreamprm.hypergradients.gradients import lower_gradient
from dreamprm.hypergradients.interface import (
    OPTIMIZER,
    Point,
    Stopped,
    keywords,
    refuse_unknown_options,
)
from dreamprm.hypergradients.precision import ARITHMETICS
from dreamprm.hypergradients.products import (
    CONTEXT,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    NoForwardMode,
    Product,
)
from dreamprm.hypergradients.solvers import identity, sama
from dreamprm.hypergradients.starts import (
    START,
    keep_q,
    keeps_start,
    last_q,
    options_of_start,
)
from dreamprm.hypergradients.updates import preconditioner
from dreamprm.hypergradients.vectors import Tensors

log = logging.getLogger("dreamprm")

WITHOUT_HESSIAN = (identity, sama)
NO_FORWARD_MODE = "no forward mode"


@dataclass(frozen=True)
class ImplicitMethod:
    """A solver and a product.

    Attributes:
        name: as in configs.
        solver: ``solver(hvp, v, **options) -> q``; see solvers.py, and starts.py for those that go
            on from their last q.
        product: ``product(loss, lower, upper, **options)`` with ``hvp`` and ``cross``; see
            products.py. None leaves the choice to :func:`right_product`.
        source: the paper.
    """

    name: str
    solver: Callable[..., Tensors]
    product: Callable[..., Product] | None = None
    source: str = ""

    @property
    def needs(self) -> frozenset[str]:
        """The lower optimizer, where the solver takes a preconditioner."""
        return frozenset({OPTIMIZER} if "preconditioner" in keywords(self.solver) else ())

    @property
    def uses_curvature(self) -> bool:
        """As for any solver but those that never apply H."""
        return self.solver not in WITHOUT_HESSIAN

    @property
    def options(self) -> dict[str, Any]:
        """Those of the solver, and of the product where it is named."""
        return self._solver_options | self._product_options

    @property
    def _solver_options(self) -> dict[str, Any]:
        own = keywords(self.solver, but=("preconditioner", START))
        return own | options_of_start(self.solver)

    @property
    def _product_options(self) -> dict[str, Any]:
        return keywords(self.product, but=CONTEXT) if self.product is not None else {}

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuses unknown options, and what the solver refuses before it uses a product."""
        of_solver, of_product = self._split(options)

        def stop(q: Tensors) -> Tensors:
            raise Stopped

        one = torch.ones(1, dtype=torch.float64)
        if self.product is not None:
            self.product(lambda p, a: (a[0] * p[0]).sum(), [one], [one], **of_product)
        # As many variables as any sane rank needs, and the memory of one.
        many = [one.expand(2**20)]
        context: dict[str, Any] = {"preconditioner": stop} if self.needs else {}
        if keeps_start(self.solver, options):
            context[START] = many
        with suppress(Stopped):
            self.solver(stop, many, **of_solver, **context)

    def indirect(self, point: Point, vector: Tensors, options: Mapping[str, Any]) -> Tensors:
        """−(∂²L/∂α∂φ)ᵀ q, shaped as α."""
        kind = self.product
        if kind is None:
            kind = right_product(self.solver, NO_FORWARD_MODE not in point.memory)
            _announce(self.name, kind, point.bits)
        try:
            return self._by(kind, point, vector, options)
        except NoForwardMode as error:
            if self.product is not None:
                raise
            point.memory[NO_FORWARD_MODE] = True
            log.info("hypergradient %s: no forward mode here (%s)", self.name, error.__cause__)
            return self.indirect(point, vector, options)

    def _by(
        self,
        kind: Callable[..., Product],
        point: Point,
        vector: Tensors,
        options: Mapping[str, Any],
    ) -> Tensors:
        of_solver, of_product = self._split(options)
        context: dict[str, Any] = {}
        if self.needs:
            context["preconditioner"] = _preconditioner(self.name, point)
        if goes_on := keeps_start(self.solver, options):
            context[START] = last_q(point, vector)
        given = {"bits": point.bits, "memory": point.memory}
        of_product |= {name: given[name] for name in CONTEXT if name in keywords(kind)}
        product = kind(point.lower_loss, point.lower, point.upper, **of_product)
        q = self.solver(product.hvp, vector, **of_solver, **context)
        shapes, expected = ([tuple(t.shape) for t in ts] for ts in (q, vector))
        if shapes != expected:
            raise UserError(
                f"the solver of hypergradient method {self.name!r} gave tensors of shapes "
                f"{shapes}, expected those of v, {expected}"
            )
        found = [-g for g in product.cross(q)]
        if goes_on:
            keep_q(point, q, self.name)
        return found

    def _split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        refuse_unknown_options(f"hypergradient method {self.name!r}", options, self.options)
        own = keywords(self.solver)
        of_solver = {n: v for n, v in options.items() if n in self._solver_options and n in own}
        of_product = {n: value for n, value in options.items() if n in self._product_options}
        return of_solver, of_product


def right_product(
    solver: Callable[..., Tensors], has_forward_mode: bool = True
) -> Callable[..., Product]:
    """The product that goes with a solver that is named alone.

    A solver that never applies H needs one cross product: by forward mode, exact in whatever
    arithmetic, for three forward passes. Where the loss's operations have none, by finite
    differences: two, right to about 1e-2. Any other solver: double backward, which keeps one graph
    for all of its products.

    Args:
        solver: of solvers.py, or one of your own.
        has_forward_mode: whether the loss's operations have it, as far as is known.
    """
    if solver not in WITHOUT_HESSIAN:
        return DoubleBackward
    return ForwardMode if has_forward_mode else FiniteDifference


@cache
def _announce(name: str, kind: Callable[..., Product], bits: int) -> None:
    """Says once which product was chosen."""
    words: dict[Callable[..., Product], str] = {
        DoubleBackward: "double backward",
        FiniteDifference: "finite difference",
    }
    log.info(
        "hypergradient %s: products by %s; the coarsest arithmetic of the lower loss is %s",
        name,
        words.get(kind, "forward mode"),
        ARITHMETICS.get(bits, f"of {bits} mantissa bits"),
    )


def _preconditioner(name: str, point: Point) -> Callable[[Tensors], Tensors]:
    step = point.next_step
    if step is None:
        raise UserError(f"hypergradient method {name!r} needs {OPTIMIZER}: pass optimizer=")
    gradient = step.gradient
    if gradient is None:
        gradient = lower_gradient(point.lower_loss, point.lower, point.upper)
    return preconditioner(step.rules, point.lower, gradient, step.state, step.clip)
