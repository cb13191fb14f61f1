"""Fixtures: the reference problems of the hypergradients; nothing goes to the user's cache."""

from __future__ import annotations

import pytest

from dreamprm.hypergradients.references import Reference
from tests.references import REFERENCES


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def ridge() -> Reference:
    return REFERENCES["ridge"]


@pytest.fixture(params=REFERENCES)
def reference(request: pytest.FixtureRequest) -> Reference:
    return REFERENCES[request.param]
