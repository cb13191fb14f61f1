"""What holds for every test: nothing is written to the user's cache."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
