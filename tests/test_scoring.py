"""``dreamprm score``: killed at any moment, nothing is lost, and the final file is the same."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamprm.cli import main
from dreamprm.data.formats import save_trajectories
from dreamprm.data.trajectory import Trajectory
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig, TinyConfig
from dreamprm.models.reward_model import ProcessRewardModel
from tests import killing

BUDGET = ["--max-tokens", "150"]


def solutions() -> list[Trajectory]:
    rng = random.Random(0)
    rows = [
        Trajectory(
            f"{question}/{candidate}",
            "d",
            f"question {question}?",
            tuple("so " * rng.randint(1, 9) + str(rng.random()) for _ in range(candidate)),
        )
        for question in range(60)
        for candidate in range(1 + question % 5)
    ]
    rng.shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, solutions, and their scores of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("scoring")
    rows = solutions()
    tiny = TinyConfig(width=32, layers=2, heads=2, vocabulary=300)
    model = build_model(ModelConfig("tiny-qwen2", tiny=tiny), rows, seed=0)
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder / "model")
    save_trajectories(folder / "data.jsonl", rows)
    assert score(folder, folder / "whole.jsonl") == 0
    return folder


def arguments(folder: Path, out: Path, *options: str) -> list[str]:
    files = [str(folder / "model"), str(folder / "data.jsonl"), "--out", str(out)]
    return ["score", *files, *BUDGET, *options]


def score(folder: Path, out: Path, *options: str) -> int:
    return main(arguments(folder, out, *options))


def killed(folder: Path, out: Path, lines: int, *options: str) -> None:
    """Scores in another process, and kills it once the journal has so many lines."""
    killing.killed(arguments(folder, out, *options), Path(f"{out}.partial"), lines)


def test_a_killed_scoring_resumes_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.jsonl"
    partial = tmp_path / "scores.jsonl.partial"
    killed(folder, out, 3)
    killed(folder, out, 11, "--resume")
    with partial.open("ab") as file:  # as where the kill tears a line
        file.write(b'{"3": [0.5')
    killed(folder, out, 20, "--resume")
    assert not out.exists()
    done = [row for line in partial.read_text().splitlines()[1:] for row in json.loads(line)]
    assert len(done) == len(set(done)) >= 20
    scored = killing.spy_on_passes(monkeypatch)
    assert score(folder, out, "--resume") == 0
    assert scored
    rows = solutions()
    assert sorted(done + scored) == sorted(str(i) for i, row in enumerate(rows) if row.steps)
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scores.jsonl",
        "scores.jsonl.origin",
    ]


def test_scores_are_in_the_order_of_the_file(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "whole.jsonl").read_text().splitlines()]
    rows = solutions()
    assert [line["id"] for line in lines] == [row.id for row in rows]
    expected = ProcessRewardModel.from_pretrained(folder / "model").score(rows)
    for line, scores in zip(lines, expected, strict=True):
        assert line["scores"] == pytest.approx(scores, abs=1e-5)
        assert (line["aggregated"] is None) == (not scores)


def test_an_output_is_not_lost(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.jsonl"

    def refused(*options: str) -> str:
        assert score(folder, out, *options) == 2
        return capsys.readouterr().err

    killed(folder, out, 3)
    begun = Path(f"{out}.partial").read_bytes()
    assert "--resume continues it" in refused()
    assert "and this command differ in --max-tokens" in refused("--resume", "--max-tokens", "151")
    other = tmp_path / "other"
    model = ProcessRewardModel.from_pretrained(folder / "model")
    with torch.no_grad():
        model.readout.bias += 1
    model.save_pretrained(other / "model")
    rows = solutions()
    save_trajectories(other / "data.jsonl", rows)
    assert score(other, out, "--resume") == 2
    assert "and this command differ in model" in capsys.readouterr().err
    save_trajectories(other / "data.jsonl", [replace(rows[0], question="?"), *rows[1:]])
    assert score(other, out, "--resume") == 2
    assert "differ in model, solutions:" in capsys.readouterr().err
    assert Path(f"{out}.partial").read_bytes() == begun
    assert not out.exists()

    out.write_text("mine")
    Path(f"{out}.partial").unlink()
    assert "--overwrite replaces it" in refused()
    assert "which says what it is of, is not" in refused("--resume")
    assert score(folder, out, "--overwrite") == 0
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    written = out.stat().st_mtime_ns
    assert score(folder, out, "--resume") == 0  # complete: there is nothing to do
    assert out.stat().st_mtime_ns == written
    assert score(other, out, "--resume") == 2  # of another model and another question
    assert "and this command differ in model, solutions" in capsys.readouterr().err
    out = tmp_path
    assert "is a folder" in refused()
    files = [str(folder / "model"), str(folder / "data.jsonl")]
    assert main(["score", *files, "--resume"]) == 2
    assert "give one by --out" in capsys.readouterr().err


def test_a_mistake_leaves_nothing_to_resume(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = solutions()[:5]
    (tmp_path / "image.png").write_bytes(b"no image")
    pictured = [replace(row, images=(tmp_path / "image.png",)) for row in rows]
    save_trajectories(tmp_path / "data.jsonl", pictured)
    out = tmp_path / "scores.jsonl"
    files = [str(folder / "model"), str(tmp_path / "data.jsonl"), "--out", str(out)]
    assert main(["score", *files]) == 2
    printed = capsys.readouterr().err
    assert "reads text only" in printed
    assert "else --images" in printed
    assert not Path(f"{out}.partial").exists()
