"""``dreamprm select``: what it writes, and that a killed one ends in the same bytes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm import ProcessRewardModel, load_questions, select
from dreamprm.cli import main
from dreamprm.data.formats import save_questions, save_trajectories
from dreamprm.data.trajectory import Candidate, SelectionQuestion
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig, TinyConfig
from tests.killing import killed, spy_on_passes


def questions() -> list[SelectionQuestion]:
    """Candidates, some without steps or an answer, none known to be right."""
    rng = random.Random(0)
    found = []
    for number in range(60):
        candidates = []
        for _ in range(rng.randint(1, 8)):
            count = rng.choice([0, 1, 2, 3])
            steps = tuple("so " * rng.randint(1, 9) + str(rng.random()) for _ in range(count))
            candidates.append(
                Candidate(steps, rng.choice(["1", "2", "1.0", None]), None, None, "d")
            )
        found.append(SelectionQuestion(f"q{number}", f"question {number}?", tuple(candidates)))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selecting")
    found = questions()
    rows = [row for question in found for row in question.trajectories()]
    tiny = TinyConfig(width=32, layers=2, heads=2, vocabulary=300)
    model = build_model(ModelConfig("tiny-qwen2", tiny=tiny), rows, seed=0)
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder / "model")
    save_questions(folder / "questions.jsonl", found)
    save_trajectories(folder / "rows.jsonl", random.Random(1).sample(rows, len(rows)))
    assert main(command(folder, folder / "whole.jsonl")) == 0
    return folder


def command(folder: Path, out: Path, *options: str, data: str = "questions.jsonl") -> list[str]:
    files = [str(folder / "model"), str(folder / data), "--out", str(out)]
    return ["select", *files, "--max-tokens", "200", *options]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_a_question(folder: Path) -> None:
    found, expected = (
        read(folder / "whole.jsonl"),
        load_questions(folder / "questions.jsonl", judged=False),
    )
    model = ProcessRewardModel.from_pretrained(folder / "model")
    in_python = select(model, expected, max_tokens=200)
    assert len(found) == len(expected)
    for line, question, selection in zip(found, expected, in_python, strict=True):
        rows = question.trajectories()
        assert line["id"] == question.id
        assert line["choice"] == selection.choice
        assert line["solution"] == rows[selection.choice].id
        assert line["answer"] == rows[selection.choice].answer
        assert line["margin"] == selection.margin
        assert [c["id"] for c in line["candidates"]] == [row.id for row in rows]
        assert [len(c["scores"]) for c in line["candidates"]] == [len(row.steps) for row in rows]
        for candidate, score in zip(line["candidates"], selection.aggregated, strict=True):
            assert candidate["aggregated"] == (score if candidate["scores"] else None)
            assert "votes" not in candidate


def test_a_killed_selection_resumes_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "choices.jsonl"
    partial = Path(f"{out}.partial")
    killed(command(folder, out), partial, 3)
    killed(command(folder, out, "--resume"), partial, 9)
    assert not out.exists()
    assert main(command(folder, out)) == 2  # there is work to lose
    done = [row for line in partial.read_text().splitlines()[1:] for row in json.loads(line)]
    scored = spy_on_passes(monkeypatch)
    assert main(command(folder, out, "--resume")) == 0
    rows = [row for question in questions() for row in question.trajectories()]
    assert scored
    assert sorted(done + scored) == sorted(str(i) for i, row in enumerate(rows) if row.steps)
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "choices.jsonl",
        "choices.jsonl.origin",
    ]


def test_by_a_vote_among_the_first_n(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "votes.jsonl"
    assert main(command(folder, out, "--aggregation", "vote+min", "--n", "3")) == 0
    whole = {line["id"]: line for line in read(folder / "whole.jsonl")}
    for line, question in zip(read(out), questions(), strict=True):
        found = line["candidates"]
        assert len(found) == min(3, len(question.candidates))
        for candidate, before in zip(found, whole[line["id"]]["candidates"], strict=False):
            assert candidate["scores"] == pytest.approx(before["scores"], abs=1e-5)
        keys = [{"1.0": "1"}.get(c.answer or "", c.answer) for c in question.candidates[:3]]
        scores = [min(c["scores"], default=0.0) for c in found]
        assert [c["aggregated"] or 0.0 for c in found] == pytest.approx(scores, rel=1e-12)
        votes = [
            sum(s for s, other in zip(scores, keys, strict=True) if other == key) if key else 0.0
            for key in keys
        ]
        assert [c["votes"] for c in found] == pytest.approx(votes, rel=1e-12)
        if any(keys):
            assert votes[line["choice"]] == pytest.approx(max(votes), rel=1e-12)
        else:
            assert scores[line["choice"]] == max(scores)


def test_trajectories_of_one_question_are_its_candidates(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    assert main(command(folder, out, data="rows.jsonl")) == 0
    whole = {line["id"]: line for line in read(folder / "whole.jsonl")}
    lines = read(out)
    assert len(lines) == len(whole)
    for line in lines:
        before = whole[line["solution"].split("/")[0]]
        scores = {c["id"]: c["aggregated"] for c in before["candidates"]}
        assert line["id"] == line["candidates"][0]["id"]
        assert {c["id"] for c in line["candidates"]} == set(scores)
        top = max(score or 0.0 for score in scores.values())
        assert (scores[line["solution"]] or 0.0) == pytest.approx(top, abs=1e-5)


def test_what_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "choices.jsonl"

    def refused(*options: str, data: str = "questions.jsonl") -> str:
        assert main(command(folder, out, *options, data=data)) == 2
        return capsys.readouterr().err

    assert "did you mean 'mean_logit'" in refused("--aggregation", "mean_logits")
    assert "--n is 0" in refused("--n", "0")
    assert "there is no file" in refused(data="nothing.jsonl")
    assert "unknown format" in refused("--format", "gsm8k")
    assert not list(tmp_path.iterdir())
    out.write_text('{"id": "q0", "aggregation": "min", "candidates": []}\n')
    assert "is there already" in refused()
    assert "which says what it is of, is not" in refused("--resume")
    assert main(command(folder, out, "--overwrite")) == 0
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert main(command(folder, out, "--resume")) == 0  # complete
    assert "and this command differ in --aggregation" in refused("--resume", "--aggregation", "max")


def test_a_model_that_gives_no_numbers_chooses_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ProcessRewardModel.from_pretrained(folder / "model")
    with torch.no_grad():
        model.readout.bias += torch.nan
    model.save_pretrained(tmp_path / "model")
    save_questions(tmp_path / "questions.jsonl", [replace(questions()[0], id="only")])
    out = tmp_path / "choices.jsonl"
    assert main(command(tmp_path, out)) == 1
    assert "the logit of step 1 is nan" in capsys.readouterr().err
    assert not out.exists()
