"""``dreamprm doctor`` on a zoo of a few operations."""

from __future__ import annotations

import json

import pytest

from dreamprm.cli import main
from dreamprm.hypergradients import nodes, zoo


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [o for o in zoo.operations() if o.name in ("det", "linear", "cdist", "spectral_norm")]
    monkeypatch.setattr(zoo, "operations", lambda: chosen)


def test_what_is_not_right_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "the derivative for '_cdist_backward' is not implemented" in out
    assert "| linear" not in out
    assert "betty-ml 0.2.1\n4 operations in float64 on cpu: 11 right, 3 refused, 2 apart, 0" in out
    assert main(["doctor", "--all", "--dtype", "float32"]) == 0
    assert "| linear" in capsys.readouterr().out


def test_json_is_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--all"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["versions"]) == {"python", "torch", "transformers", "betty-ml"}
    assert len(found["rows"]) == sum(found["summary"].values()) == 16
    for row in found["rows"]:
        assert row["status"] != "right" or row["error"] < 1e-6


def test_what_is_silently_wrong_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodes, "BRANCHING", frozenset())
    assert main(["doctor"]) == 1
    found = capsys.readouterr()
    assert found.err == "dreamprm: silently wrong with this torch: det by forward\n"
    assert "WRONG" in found.out


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "nowhere"]) == 2
    assert "--device is 'nowhere': " in capsys.readouterr().err
