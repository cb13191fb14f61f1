"""The hypergradient methods by name, and the one door through which they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dreamprm.errors import UserError
from dreamprm.hypergradients.finite import is_finite
from dreamprm.hypergradients.implicit import ImplicitMethod
from dreamprm.hypergradients.interface import UPPER_LOSS, DirectMethod, Method, Point
from dreamprm.hypergradients.penalty import f2sa
from dreamprm.hypergradients.products import PRODUCTS
from dreamprm.hypergradients.randomness import same_randomness
from dreamprm.hypergradients.solvers import SOLVERS
from dreamprm.hypergradients.unrolled import UnrolledMethod
from dreamprm.hypergradients.vectors import Tensors
from dreamprm.method_names import ONE_PRODUCT, SOURCES, parts_of

METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Makes a method known by its name, in Python and in configs.

    Raises:
        UserError: the name is taken, or looks like a pair.
    """
    if "+" in method.name:
        raise UserError(f"{method.name!r} has a +, which stands between solver and product")
    if method.name in METHODS:
        raise UserError(f"there is a hypergradient method {method.name!r} already")
    METHODS[method.name] = method


for _name, _solver in SOLVERS.items():
    register(ImplicitMethod(_name, _solver, None, SOURCES[_name]))
register(
    ImplicitMethod("darts", SOLVERS["identity"], PRODUCTS["finite_difference"], SOURCES["darts"])
)
register(ImplicitMethod("t1t2", SOLVERS["identity"], PRODUCTS["forward"], SOURCES["t1t2"]))
register(UnrolledMethod("unrolled", PRODUCTS["double_backward"], SOURCES["unrolled"]))
register(DirectMethod("f2sa", f2sa, SOURCES["f2sa"], frozenset({UPPER_LOSS})))


def resolve(name: str) -> Method:
    """The method of a name, or of a pair written ``solver+product`` or ``unrolled+product``.

    What was registered as a solver with a product takes another product in the same way.

    Raises:
        UserError: there is none; the message lists the known ones.
    """
    with_products = [
        known
        for known, method in METHODS.items()
        if isinstance(method, ImplicitMethod | UnrolledMethod) and known not in ONE_PRODUCT
    ]
    first, product = parts_of(name, METHODS, with_products, PRODUCTS)
    method: Any = METHODS[first]
    return replace(method, name=name, product=PRODUCTS[product]) if product else method


def indirect_gradient(
    method: Method, point: Point, vector: Tensors, options: Mapping[str, Any]
) -> Tensors:
    """The indirect term of dM/dα for v = ∇_φ M: what M changes by because α changes φ.

    Args:
        method: of :func:`resolve`.
        point: where; its losses need not draw the same random numbers at every evaluation yet.
        vector: v, shaped as φ.
        options: of the method.

    Returns:
        shaped as α.

    Raises:
        UserError: an option is not known or out of its range, v is not finite, the method needs
            what the point does not have, or the lower loss does not depend on α.
        FloatingPointError: the result is not finite.
    """
    if not is_finite(vector):
        raise UserError(
            f"hypergradient method {method.name!r} got a v that is not finite: "
            "the gradient of the upper loss with respect to φ has a NaN or an infinity"
        )
    point = replace(
        point,
        lower_loss=same_randomness(point.lower_loss, point.lower),
        upper_loss=point.upper_loss and same_randomness(point.upper_loss, point.lower),
    )
    found = method.indirect(point, [v.detach() for v in vector], options)
    shapes, expected = ([tuple(t.shape) for t in ts] for ts in (found, point.upper))
    if shapes != expected:
        raise UserError(
            f"hypergradient method {method.name!r} gave tensors of shapes {shapes}, "
            f"expected those of the upper parameters, {expected}"
        )
    if not is_finite(found):
        given = ", ".join(f"{k}={v}" for k, v in (method.options | dict(options)).items())
        raise FloatingPointError(
            f"the hypergradient of method {method.name!r} ({given or 'no options'}) is not finite"
        )
    return found
