"""What there is to say of every hypergradient method, and the form of what is measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dreamprm.errors import UserError, unknown_name
from dreamprm.hypergradients.interface import STEPS, Method
from dreamprm.hypergradients.registry import resolve


@dataclass
class Row:
    """What is known and measured of one method.

    Attributes:
        name, source: of the method.
        needs: what it asks of the problem.
        options: those it was measured with.
        forwards: cost in forward passes of the lower loss on the same batch, by counted operations;
            beyond v.
        copies: of the parameters that are held at once, v among them, by counted bytes.
        cosine, error: by the case's name; of the angle to the exact hypergradient, and the
            distance from it over its length. A method that failed there has neither.
        notes: by the case's name; why it failed, or what it warned of.
    """

    name: str
    source: str
    needs: list[str]
    options: dict[str, Any]
    forwards: float | None = None
    copies: float | None = None
    cosine: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def describe(names: Sequence[str], options: Mapping[str, Any]) -> list[Row]:
    """A row for each method, nothing measured yet.

    Args:
        names: of methods or ``solver+product`` pairs.
        options: given to every method that has them.

    Raises:
        UserError: a name or option is not known, or its value is out of its range.
    """
    methods = [resolve(name) for name in names]
    known = {name for method in methods for name in method.options}
    for name in options:
        if name not in known:
            of = ", ".join(names)
            raise UserError(
                unknown_name(f"option of {of}", name, known)
                if known
                else f"{of}: there are no options, found {name!r}"
            )
    rows = []
    for method in methods:
        own = {name: value for name, value in options.items() if name in method.options}
        method.check(own)
        if STEPS in method.needs:
            own = {"iterations": 5} | own
        values = {name: own.get(name, default) for name, default in method.options.items()}
        rows.append(Row(method.name, method.source, _needs(method), values))
    return rows


def _needs(method: Method) -> list[str]:
    """What a method asks of the problem, and its product of the losses."""
    product: Any = getattr(method, "product", None)
    return [*sorted(method.needs), *([product.requires] if hasattr(product, "requires") else [])]
