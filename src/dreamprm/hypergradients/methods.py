"""The named methods: which solver goes with which product, and the functions that apply them.

dM/dα = ∂M/∂α − (∂²L/∂α∂φ)ᵀ q,   q ≈ H⁻¹ ∇_φ M
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamprm.errors import UserError, unknown_name
from dreamprm.hypergradients.products import PRODUCTS, Product
from dreamprm.hypergradients.solvers import SOLVERS, Tensors

Parameters = Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Method:
    """A hypergradient method: a solver and a product.

    Attributes:
        name: as in configs.
        solver: ``solver(hvp, v, **options) -> q``; see solvers.py.
        product: ``product(loss, lower, upper, **options)`` with ``hvp`` and ``cross``; see
            products.py.
        source: the paper.
    """

    name: str
    solver: Callable[..., Tensors]
    product: Callable[..., Product]
    source: str = ""

    def split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of the solver and those of the product.

        Raises:
            UserError: neither has an option of that name.
        """
        of_solver, of_product = _keywords(self.solver), _keywords(self.product)
        for name in options:
            if name not in of_solver | of_product:
                known = of_solver | of_product
                raise UserError(
                    unknown_name(f"option of hypergradient method {self.name!r}", name, known)
                    if known
                    else f"hypergradient method {self.name!r} has no options, found {name!r}"
                )
        return (
            {name: value for name, value in options.items() if name in of_solver},
            {name: value for name, value in options.items() if name in of_product},
        )

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuses options that the method does not have, or of a wrong value.

        Raises:
            UserError: names the option, what was found and what was expected.
        """
        of_solver, of_product = self.split(options)
        # A problem of one variable, L = (αφ)²/2, tries the values before a long run does.
        one = torch.ones(1, dtype=torch.float64)
        product = self.product(
            lambda lower, upper: (upper[0] * lower[0]).square().sum() / 2,
            [one],
            [one],
            **of_product,
        )
        self.solver(product.hvp, [one], **of_solver)


METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Makes a method known by its name, in Python and in configs.

    Raises:
        UserError: the name is taken.
    """
    if method.name in METHODS:
        raise UserError(f"there is a hypergradient method {method.name!r} already")
    METHODS[method.name] = method


register(
    Method(
        "darts",
        SOLVERS["identity"],
        PRODUCTS["finite_difference"],
        "Liu et al. 2019, arXiv 1806.09055",
    )
)
register(
    Method(
        "t1t2", SOLVERS["identity"], PRODUCTS["forward"], "Luketina et al. 2016, arXiv 1511.06727"
    )
)
register(
    Method(
        "neumann",
        SOLVERS["neumann"],
        PRODUCTS["double_backward"],
        "Lorraine et al. 2020, arXiv 1911.02590",
    )
)


def resolve(name: str) -> Method:
    """The method of a name, or of a pair written ``solver+product``.

    Raises:
        UserError: there is none; the message lists the known ones.
    """
    if name in METHODS:
        return METHODS[name]
    solver, plus, product = name.partition("+")
    if plus and solver in SOLVERS and product in PRODUCTS:
        return Method(name, SOLVERS[solver], PRODUCTS[product])
    pairs = [f"{solver}+{product}" for solver in SOLVERS for product in PRODUCTS]
    raise UserError(unknown_name("hypergradient method", name, [*METHODS, *pairs]))


def implicit_gradient(
    method: str,
    vector: Sequence[Tensor],
    lower_loss: Callable[[Tensors, Tensors], Tensor],
    lower_params: Sequence[Tensor],
    upper_params: Sequence[Tensor],
    **options: Any,
) -> Tensors:
    """The implicit term −(∂²L/∂α∂φ)ᵀ q with q ≈ H⁻¹ v.

    Args:
        method: a name known to :func:`resolve`.
        vector: v, shaped as ``lower_params``.
        lower_loss: L(φ, α), a scalar, a pure function of two lists of tensors.
        lower_params: φ.
        upper_params: α.
        **options: of the method.

    Returns:
        shaped as ``upper_params``.

    Raises:
        UserError: the method or an option is not known, v is not finite, or the lower loss does
            not depend on α.
    """
    chosen = resolve(method)
    of_solver, of_product = chosen.split(options)
    if not all(bool(v.isfinite().all()) for v in vector):
        raise UserError("the gradient of the upper loss with respect to φ is not finite")
    product = chosen.product(lower_loss, list(lower_params), list(upper_params), **of_product)
    q = chosen.solver(product.hvp, [v.detach() for v in vector], **of_solver)
    return [-g for g in product.cross(q)]


def hypergradient(
    method: str,
    upper_loss: Callable[[Any, Any], Tensor],
    lower_loss: Callable[[Any, Any], Tensor],
    lower_params: Parameters,
    upper_params: Parameters,
    **options: Any,
) -> Any:
    """The total derivative dM/dα = ∂M/∂α − (∂²L/∂α∂φ)ᵀ q at the given φ, with q ≈ H⁻¹ ∇_φ M.

    Args:
        method: ``darts``, ``t1t2``, ``neumann``, or a pair ``solver+product``.
        upper_loss: M(φ, α), a scalar, a pure function on the current batch.
        lower_loss: L(φ, α), likewise.
        lower_params: φ, a sequence of tensors or a dict of named ones; the losses get it as it is
            (a dict is what ``torch.func.functional_call`` takes).
        upper_params: α, likewise.
        **options: of the method, e.g. ``iterations`` and ``alpha`` of ``neumann``.

    Returns:
        dM/dα in the structure of ``upper_params``. The tensors given are not changed, nor are
        their ``requires_grad`` and ``grad``.

    Raises:
        UserError: the method or an option is not known, a loss is not a scalar, a gradient is not
            finite, or the lower loss does not depend on α.
    """
    phi, like_lower = _flatten(lower_params)
    alpha, like_upper = _flatten(upper_params)
    phi = [p.detach().requires_grad_() for p in phi]
    alpha = [a.detach().requires_grad_() for a in alpha]
    upper_value = upper_loss(like_lower(phi), like_upper(alpha))
    if upper_value.numel() != 1:
        raise UserError(f"the upper loss has shape {tuple(upper_value.shape)}, expected a scalar")
    grads = torch.autograd.grad(
        upper_value, [*alpha, *phi], allow_unused=True, materialize_grads=True
    )
    direct, vector = grads[: len(alpha)], grads[len(alpha) :]
    implicit = implicit_gradient(
        method,
        vector,
        lambda lower, upper: lower_loss(like_lower(lower), like_upper(upper)),
        phi,
        alpha,
        **options,
    )
    return like_upper([d + i for d, i in zip(direct, implicit, strict=True)])


def _flatten(params: Parameters) -> tuple[Tensors, Callable[[Tensors], Any]]:
    """The tensors, and what puts such tensors back into the structure."""
    if isinstance(params, Mapping):
        names = list(params)
        return list(params.values()), lambda ts: dict(zip(names, ts, strict=True))
    if isinstance(params, tuple):
        return list(params), tuple
    return list(params), list


def _keywords(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
