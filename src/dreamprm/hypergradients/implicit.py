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
from dreamprm.hypergradients.interface import (
    OPTIMIZER,
    Point,
    Stopped,
    keywords,
    refuse_unknown_options,
)
from dreamprm.hypergradients.precision import ARITHMETICS, mantissa_bits
from dreamprm.hypergradients.products import (
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    Product,
    lower_gradient,
)
from dreamprm.hypergradients.solvers import Tensors, identity, sama
from dreamprm.hypergradients.updates import preconditioner

log = logging.getLogger("dreamprm")

WITHOUT_HESSIAN = (identity, sama)


@dataclass(frozen=True)
class ImplicitMethod:
    """A solver and a product.

    Attributes:
        name: as in configs.
        solver: ``solver(hvp, v, **options) -> q``; see solvers.py.
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
        return keywords(self.solver, but=("preconditioner",))

    @property
    def _product_options(self) -> dict[str, Any]:
        return keywords(self.product, but=("bits",)) if self.product is not None else {}

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuses unknown options, and what the solver refuses before it uses a product."""
        of_solver, of_product = self._split(options)

        def stop(q: Tensors) -> Tensors:
            raise Stopped

        one = torch.ones(1, dtype=torch.float64)
        if self.product is not None:
            self.product(lambda p, a: (a[0] * p[0]).sum(), [one], [one], **of_product)
        context = {"preconditioner": stop} if self.needs else {}
        # As many variables as any sane rank needs, and the memory of one.
        with suppress(Stopped):
            self.solver(stop, [one.expand(2**20)], **of_solver, **context)

    def indirect(self, point: Point, vector: Tensors, options: Mapping[str, Any]) -> Tensors:
        """−(∂²L/∂α∂φ)ᵀ q, shaped as α."""
        of_solver, of_product = self._split(options)
        kind = self.product
        if kind is None:
            kind = right_product(self.solver, point.bits)
            _announce(self.name, kind, point.bits)
        context = {"preconditioner": _preconditioner(self.name, point)} if self.needs else {}
        if "bits" in keywords(kind):
            of_product["bits"] = point.bits
        product = kind(point.lower_loss, point.lower, point.upper, **of_product)
        q = self.solver(product.hvp, vector, **of_solver, **context)
        shapes, expected = ([tuple(t.shape) for t in ts] for ts in (q, vector))
        if shapes != expected:
            raise UserError(
                f"the solver of hypergradient method {self.name!r} gave tensors of shapes "
                f"{shapes}, expected those of v, {expected}"
            )
        return [-g for g in product.cross(q)]

    def _split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        refuse_unknown_options(self.name, options, self.options)
        of_solver = {n: value for n, value in options.items() if n in self._solver_options}
        of_product = {n: value for n, value in options.items() if n in self._product_options}
        return of_solver, of_product


def right_product(solver: Callable[..., Tensors], bits: int) -> Callable[..., Product]:
    """The product that goes with a solver and an arithmetic.

    A solver that never applies H needs one cross product: two evaluations by finite difference,
    which are right to about 1e-3 in fp32 and useless below; there forward mode, which is exact and
    costs one half more. Any other solver: double backward, which keeps one graph for all of them.

    Args:
        solver: of solvers.py, or one of your own.
        bits: of the arithmetic's mantissa.
    """
    if solver not in WITHOUT_HESSIAN:
        return DoubleBackward
    return FiniteDifference if bits >= mantissa_bits(torch.float32) else ForwardMode


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
