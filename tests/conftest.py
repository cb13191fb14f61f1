"""Fixtures: the reference problems of the hypergradients."""

from __future__ import annotations

import pytest

from dreamprm.hypergradients.references import (
    Reference,
)
from tests.references import REFERENCES


@pytest.fixture
def ridge() -> Reference:
    return REFERENCES["ridge"]


@pytest.fixture(params=REFERENCES)
def reference(request: pytest.FixtureRequest) -> Reference:
    return REFERENCES[request.param]
