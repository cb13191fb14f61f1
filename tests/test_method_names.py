"""Misspelt methods are refused before torch is imported, and by the names that there are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dreamprm import method_names as methods
from dreamprm.errors import UserError
from dreamprm.hypergradients import METHODS, resolve
from dreamprm.hypergradients.products import PRODUCTS

REFUSED = """
import sys
from dreamprm.errors import UserError
from dreamprm import load_config
try:
    load_config("{config}", {words})
except UserError as error:
    print("torch" in sys.modules, error)
"""


def test_the_names_are_those_of_the_registry() -> None:
    built_in = {name for name, method in METHODS.items() if method.source in set(_sources())}
    assert built_in == set(methods.SOURCES)
    assert {METHODS[name].source for name in methods.SOURCES} == set(_sources())
    assert tuple(PRODUCTS) == methods.PRODUCTS


def _sources() -> list[str]:
    return list(methods.SOURCES.values())


@pytest.mark.parametrize("name", sorted(methods.SOURCES))
@pytest.mark.parametrize("product", ["", *(f"+{product}" for product in methods.PRODUCTS)])
def test_both_checks_agree(name: str, product: str) -> None:
    early = late = ""
    try:
        methods.check_built_in({"hypergradient": name + product}, "here")
    except UserError as error:
        early = str(error)
    try:
        resolve(name + product)
    except UserError as error:
        late = f"here: {error}"
    assert early == late
    assert bool(early) == bool(product and name in ("darts", "t1t2", "f2sa"))


@pytest.mark.parametrize("config", ["demo", "noisy_labels"])
def test_a_misspelt_method_costs_no_import_of_torch(config: str) -> None:
    code = REFUSED.format(config=config, words=["hypergradient=neuman"])
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.startswith(f"False {config}: unknown hypergradient method 'neuman': did you mean")


def test_a_method_that_was_registered_in_python_is_known() -> None:
    code = """
from dataclasses import replace
from dreamprm.hypergradients import METHODS, register
from dreamprm import load_config
register(replace(METHODS["cg"], name="mine"))
print(load_config("demo", ["hypergradient=mine"]).hypergradient)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found == "mine\n"
