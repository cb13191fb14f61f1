"""The names of the built-in hypergradient methods, which a config is held to before torch loads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dreamprm.errors import UserError, unknown_name

_IDENTITY = "Luketina et al. 2016, arXiv 1511.06727"
SOURCES = {
    "identity": _IDENTITY,
    "neumann": "Lorraine et al. 2020, arXiv 1911.02590",
    "soba": "Dagréou et al. 2022, arXiv 2201.13409",
    "cg": "Rajeswaran et al. 2019, arXiv 1909.04630",
    "nystrom": "Hataya & Yamada 2023, arXiv 2302.10126",
    "sama": "Choe et al. 2023, arXiv 2310.05674",
    "darts": "Liu et al. 2019, arXiv 1806.09055",
    "t1t2": _IDENTITY,
    "unrolled": "Franceschi et al. 2017, arXiv 1703.01785; Shaban et al. 2019, arXiv 1810.10667",
    "f2sa": "Kwon et al. 2023, arXiv 2301.10945; Pan et al. 2024, arXiv 2406.19976",
}
ONE_PRODUCT = frozenset({"darts", "t1t2"})  # solvers that stand for a pair
NO_PRODUCT = frozenset({"f2sa"})
PRODUCTS = ("double_backward", "forward", "finite_difference")


def parts_of(
    name: str,
    known: Collection[str],
    with_products: Collection[str],
    products: Collection[str] = PRODUCTS,
) -> tuple[str, str]:
    """A method's name taken apart at its +.

    Args:
        name: of a method, or of a pair written ``solver+product``.
        known: the names of all methods.
        with_products: those of them that take another product.
        products: the names of those.

    Returns:
        the method, and the product or nothing.

    Raises:
        UserError: there is none of the name; the message lists the known ones.
    """
    if name in known:
        return name, ""
    first, _, product = name.partition("+")
    if product in products and first in with_products:
        return first, product
    if product in products and first in known:
        raise UserError(f"hypergradient method {first!r} takes no other product, found {name!r}")
    pairs = [f"{method}+{product}" for method in with_products for product in products]
    raise UserError(
        unknown_name("hypergradient method", name, known, also=pairs)
        + f"; a solver or unrolled also with +{', +'.join(products)}"
    )


def check_built_in(found: Mapping[str, Any], where: str) -> None:
    """Refuses a misspelt method of a config in which only built-in ones can be meant.

    Args:
        found: the values of the config's keys, as far as it has them.
        where: they stand, for messages.

    Raises:
        UserError: names the nearest right one.
    """
    name = found.get("hypergradient")
    if not isinstance(name, str) or "${" in name:
        return
    try:
        parts_of(name, SOURCES, SOURCES.keys() - ONE_PRODUCT - NO_PRODUCT)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
