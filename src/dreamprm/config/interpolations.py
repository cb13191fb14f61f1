"""``${key}`` in a config is the value of another key; ``${name:…}``, which computes, is refused.

A config is shared with the run: ``${oc.env:TOKEN}`` would copy a secret of whoever runs it into the
run directory, and the others compute what a reader of the config does not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from dreamprm.errors import UserError, shown


def refuse_resolvers(found: Any, where: str) -> None:
    """Refuses values, at any depth, that call one of OmegaConf's resolvers, or cannot be read.

    Args:
        found: dicts and lists as they were read, nothing resolved.
        where: they stand, for messages.

    Raises:
        UserError: names the key and the value.
    """
    for at, value in _texts(found, ""):
        try:
            tree = parse(value)
        except GrammarParseError as error:
            fault = str(error).splitlines()[0]
            raise UserError(f"{where}: {at} is {shown(value)}: {fault}") from error
        if _calls(tree):
            raise UserError(
                f"{where}: {at} is {shown(value)}, which computes a value or reads the "
                "environment; expected a value, or ${KEY} for that of another key"
            )


def refuse_dollars(found: Any, where: str) -> None:
    r"""Refuses values that hold ``${`` after all keys have their values.

    By ``\${`` or from two parts: who reads the saved config would take it for an interpolation.

    Raises:
        UserError: names the key and the value.
    """
    for at, value in _texts(found, ""):
        raise UserError(f"{where}: {at} is {shown(value)}, expected a value without ${{")


def _texts(found: Any, key: str) -> Iterator[tuple[str, str]]:
    """The texts with ``${`` at any depth, each with its key."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(found, list):
        for place, value in enumerate(found):
            yield from _texts(value, f"{key}[{place}]")
    elif isinstance(found, str) and "${" in found:
        yield key, found


def _calls(tree: Any) -> bool:
    if isinstance(tree, OmegaConfGrammarParser.InterpolationResolverContext):
        return True
    return any(map(_calls, tree.getChildren() if hasattr(tree, "getChildren") else ()))
