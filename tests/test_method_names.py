"""Misspelt methods are refused before torch is imported, and by the names that there are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dreamprm import method_names as methods
from dreamprm.errors import UserError
from dreamprm.hypergradients import resolve

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
    code = """
from dreamprm import method_names
from dreamprm.hypergradients import METHODS
from dreamprm.hypergradients.products import PRODUCTS
print(set(METHODS) == set(method_names.SOURCES), tuple(PRODUCTS) == method_names.PRODUCTS)
print(all(METHODS[name].source == source for name, source in method_names.SOURCES.items()))
"""
    found = subprocess.run(  # in a process in which no other test has registered any
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.split() == ["True"] * 3


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
