"""Fixtures: the reference problems; no test sees another's cache or log level."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from dreamprm.hypergradients.references import Reference
from tests.references import REFERENCES


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """Commands set the level of the package's logger for the process, which is theirs."""
    logger = logging.getLogger("dreamprm")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def ridge() -> Reference:
    return REFERENCES["ridge"]


@pytest.fixture(params=REFERENCES)
def reference(request: pytest.FixtureRequest) -> Reference:
    return REFERENCES[request.param]
