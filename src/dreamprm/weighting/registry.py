"""The weightings by name, and the one door through which they are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn

from dreamprm.errors import UserError, unknown_name
from dreamprm.hypergradients.interface import keywords, refuse_unknown_options
from dreamprm.weighting.baselines import focal, oracle, worst_group
from dreamprm.weighting.combined import domain_and_rows
from dreamprm.weighting.fixed import fixed
from dreamprm.weighting.groups import domain_table
from dreamprm.weighting.instances import instance_network, instance_table
from dreamprm.weighting.labels import label_table
from dreamprm.weighting.next_step import learning_to_reweight
from dreamprm.weighting.rows import Rows
from dreamprm.weighting.selection import balanced_information


@dataclass(frozen=True)
class Weighting:
    """What may stand under ``weighting`` in a config.

    Attributes:
        name: as there.
        build: ``build(rows, **options)`` gives the module that is called as
            ``module(batch, losses) -> weights [b]``; its keyword-only arguments are the options.
            A module that has ``corrected(batch) -> batch`` gives the batch that the losses are of.
            None where every sample counts 1.
        learned: whether an upper problem learns the module's parameters.
        looks_ahead: whether it only gives weights to the batch of the coming step, by one inner
            product a sample; the module has ``of_alignments`` in the place of parameters.
        source: the paper.
    """

    name: str
    build: Callable[..., nn.Module] | None
    learned: bool = True
    looks_ahead: bool = False
    source: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """The options there are, with their defaults."""
        return keywords(self.build) if self.build is not None else {}


WEIGHTINGS: dict[str, Weighting] = {}


def register(weighting: Weighting) -> None:
    """Makes a weighting known by its name.

    Raises:
        UserError: the name is taken.
    """
    if weighting.name in WEIGHTINGS:
        raise UserError(f"there is a weighting {weighting.name!r} already")
    WEIGHTINGS[weighting.name] = weighting


register(Weighting("domain_table", domain_table, source="Cao et al. 2025, arXiv 2505.20241"))
register(Weighting("instance_table", instance_table, source="Cao et al. 2025, arXiv 2509.05542"))
register(
    Weighting("instance_network", instance_network, source="Shu et al. 2019, arXiv 1902.07379")
)
register(Weighting("label_table", label_table, source="Zhang et al. 2025, arXiv 2512.15000"))
register(Weighting("domain_and_rows", domain_and_rows))
register(
    Weighting(
        "learning_to_reweight",
        learning_to_reweight,
        looks_ahead=True,
        source="Ren et al. 2018, arXiv 1803.09050",
    )
)
register(Weighting("fixed", fixed, learned=False))
register(Weighting("uniform", None, learned=False))
register(Weighting("oracle", oracle, learned=False))
register(Weighting("focal", focal, learned=False, source="Lin et al. 2017, arXiv 1708.02002"))
register(
    Weighting(
        "worst_group", worst_group, learned=False, source="Sagawa et al. 2020, arXiv 1911.08731"
    )
)
register(
    Weighting(
        "balanced_information",
        balanced_information,
        learned=False,
        source="Li et al. 2026, arXiv 2602.04145",
    )
)


def check_weighting(name: str, options: Mapping[str, Any]) -> None:
    """Refuses a name or an option that is not known.

    Raises:
        UserError: names the nearest right one.
    """
    if name not in WEIGHTINGS:
        raise UserError(unknown_name("value of weighting", name, WEIGHTINGS))
    refuse_unknown_options(f"weighting {name!r}", options, WEIGHTINGS[name].options)
    build = WEIGHTINGS[name].build
    hints = get_type_hints(build) if build is not None and options else {}
    for option, value in options.items():
        kinds = _kinds(hints.get(option, Any))
        if kinds and not isinstance(value, kinds):
            expected = " or ".join(dict.fromkeys(_WORDS.get(k, k.__name__) for k in kinds))
            raise UserError(f"weighting_options.{option} is {value!r}, expected {expected}")


_WORDS = {
    type(None): "null",
    str: "a text",
    Mapping: "keys and values",
    list: "a list",
    tuple: "a list",
}


def _kinds(hint: Any) -> tuple[type, ...]:
    """What a value of a text, a list or a mapping may be; nothing where the builder checks it."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    kind = get_origin(hint) or hint
    if kind is Sequence:
        return () if Any in get_args(hint) else (list, tuple, str)
    return (kind,) if kind in (str, Mapping, type(None)) else ()


def build_weighting(name: str, rows: Rows, options: Mapping[str, Any]) -> nn.Module | None:
    """The module of a weighting for training rows; None where every one counts 1.

    Raises:
        UserError: an option is wrong, or does not go with the rows.
    """
    check_weighting(name, options)
    build = WEIGHTINGS[name].build
    return build(rows, **options) if build is not None else None
