"""The keys that say where data lie and what format they are of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dreamprm.cli import main
from dreamprm.data.sources import RunData, load_data
from dreamprm.errors import UserError
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.config import Config

ROW: dict[str, Any] = {"id": "a", "domain": "d", "question": "q?", "steps": ["one", "two"]}
CANONICAL = [ROW | {"step_labels": [0.5, 1]}, ROW | {"id": "b", "question": "r?", "outcome": True}]
TRL = [{"prompt": "p?", "completions": ["one", "two"], "labels": [True, False]}]
QUESTION = {
    "id": "t",
    "question": "t?",
    "candidates": [{"steps": ["one"], "correct": True}, {"steps": ["two"], "correct": False}],
}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder: Path, *overrides: str, data: str = "{}") -> Config:
    path = folder / "mine.yaml"
    path.write_text(f"data: {data}\n")
    small = ["out=run", "steps=5", "model.backbone=tiny-qwen2"]
    small += [f"{level}.{key}" for level in ("lower", "upper") for key in ("learning_rate=1",)]
    return load_config(str(path), [*small, "lower.batch_size=1", "upper.batch_size=1", *overrides])


def read(folder: Path, *overrides: str, data: str = "{}") -> RunData:
    return load_data(config(folder, *overrides, data=data).data, folder / "run", seed=0)


@pytest.mark.parametrize("streaming", ["never", "always"])
def test_auto_tells_the_format_of_every_file(
    tmp_path: Path, streaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path / "cache"))
    one, two = write(tmp_path / "one.jsonl", *CANONICAL), write(tmp_path / "two.jsonl", *TRL)
    keys = [f"data.train=[{one},{two}]", f"data.meta={two}", f"data.streaming={streaming}"]
    found = read(tmp_path, *keys, "data.format=auto", "data.meta_format=auto")
    assert [row.question for row in found.train] == ["q?", "r?", "p?"]
    assert [row.question for row in found.meta] == ["p?"]
    # What is told is what would have been named.
    named = read(tmp_path, f"data.train={two}", "data.format=trl", f"data.streaming={streaming}")
    assert next(iter(named.train)) == list(found.train)[2]


def test_auto_tells_what_is_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write(tmp_path / "a.jsonl", *CANONICAL)), str(write(tmp_path / "b.jsonl", *TRL))]
    assert main(["validate", *files, "--format", "auto", "--json"]) == 0
    assert [file["rows"] for file in json.loads(capsys.readouterr().out)["files"]] == [2, 1]


@pytest.mark.parametrize("role", ["train", "meta"])
def test_a_format_that_cannot_be_told_is_one_message(tmp_path: Path, role: str) -> None:
    good = write(tmp_path / "good.jsonl", *CANONICAL)
    bad = write(tmp_path / "bad.jsonl", {"text": "x"})
    key = {"train": "data.format", "meta": "data.meta_format"}[role]
    keys = [f"data.train={good}", f"data.{role}={bad}", f"{key}=auto"]
    expected = rf"^{re.escape(key)}=auto: cannot tell the format of {bad} .*text.*name one of"
    with pytest.raises(UserError, match=expected):
        read(tmp_path, *keys)
    with pytest.raises(UserError, match=rf"^unknown {re.escape(key)} 'canonicle': did you mean"):
        read(tmp_path, *keys, f"{key}=canonicle")


@pytest.mark.parametrize("key", ["data.train", "data.meta", "data.test", "model.lora.targets"])
def test_a_single_string_is_a_list_of_one(tmp_path: Path, key: str) -> None:
    section, name = key.rsplit(".", 1)
    found: Any = config(tmp_path, f"{key}=a.jsonl")
    for part in key.split("."):
        found = getattr(found, part)
    assert found == ["a.jsonl"]
    if section == "data":
        assert getattr(config(tmp_path, data=f"{{{name}: parts/*.jsonl}}").data, name) == [
            "parts/*.jsonl"
        ]


def test_a_string_may_refer_to_another_key(tmp_path: Path) -> None:
    found = config(tmp_path, data="{format: trl, train: '${data.format}/a', meta: '${data.train}'}")
    assert (found.data.train, found.data.meta) == (["trl/a"], ["trl/a"])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.train", "3", "data.train is 3, expected a name or a list of names"),
        ("data.train", "true", "data.train is True, expected a name or a list"),
        ("data.train", "", "data.train is empty, expected a name or a list"),
        ("data.train", "{a: 1}", "data.train is {'a': 1}, expected a name or a list"),
        ("data.train", "[[a]]", "data.train is [['a']], expected a name or a list"),
        ("model.lora.targets", "[{a: 1}]", "model.lora.targets is [{'a': 1}], expected a name or"),
        ("data", "3", "data is 3, expected keys and values"),
        ("lower", "[1]", "lower is [1], expected keys and values"),
        ("hypergradient_options", "3", "hypergradient_options is 3, expected keys and values"),
    ],
)
def test_values_of_another_kind_are_refused(
    tmp_path: Path, key: str, value: str, expected: str
) -> None:
    with pytest.raises(UserError, match=re.escape(f"'{key}={value}': {expected}")):
        config(tmp_path, f"{key}={value}")


def test_relative_paths_are_taken_from_the_root(tmp_path: Path) -> None:
    root = tmp_path / "[data]"  # no pattern
    for name in ("parts/a.jsonl", "parts/b.jsonl"):
        write(root / name, ROW | {"id": name, "question": name})
    other = write(tmp_path / "absolute.jsonl", ROW)
    write(root / "meta.jsonl", ROW | {"outcome": True})
    write(root / "test.jsonl", QUESTION)
    keys = [f"data.train=['parts/*.jsonl',{other}]", "data.meta=meta.jsonl", "data.test=test.jsonl"]
    found = read(tmp_path, f"data.root={root}", *keys)
    assert [row.id for row in found.train] == ["parts/a.jsonl", "parts/b.jsonl", "a"]
    assert len(found.meta) == len(found.test) == 1


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("gsm8k", "openai/grade-school-math"),
        ("mathv", "https://github.com/mathllm/MATH-V"),
    ],
)
def test_what_a_shipped_config_misses_is_named_with_its_origin(
    name: str, origin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", name, f"data.root={tmp_path}", f"out={out}"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"dreamprm: data.train: there is no file {tmp_path}/{name}")
    assert origin in last
    assert f"data.root, which is '{tmp_path}'" in last
    assert not out.exists()


def test_shares_that_leave_nothing_are_named_by_their_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", *CANONICAL)
    keys = [f"data.train={path}", "data.meta_share=0.6", "data.test_share=0.6"]
    with pytest.raises(UserError, match=r"^data.meta_share 0.6 and data.test_share 0.6 leave noth"):
        read(tmp_path, *keys)


def test_a_run_resumes_on_the_same_data_below_another_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    labelled = [ROW | {"id": n, "domain": n, "question": n, "step_labels": [0.5, 1]} for n in "ab"]
    for root in ("here", "there"):
        write(tmp_path / root / "train.jsonl", *labelled)
        write(tmp_path / root / "meta.jsonl", *(row | {"outcome": True} for row in labelled))
    (tmp_path / "mine.yaml").write_text("data: {train: train.jsonl, meta: meta.jsonl}\n")
    small = ["steps=1", "unroll_steps=1", "model.backbone=tiny-qwen2", "model.tiny.width=32"]
    small += ["model.tiny.heads=2", "model.tiny.layers=1", "baseline=false", "device=cpu"]
    small += ["lower.learning_rate=1e-3", "upper.learning_rate=1e-3", "lower.batch_size=2"]
    command = ["train", "mine.yaml", *small, "upper.batch_size=2", "out=run"]
    command += ["meta_loss=aggregation_mse"]
    assert main([*command, "data.root=here"]) == 0
    assert main([*command, "data.root=there", "--resume"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 2
    assert "run has no test set: give --selection or --steps" in capsys.readouterr().err
    (tmp_path / "there" / "train.jsonl").unlink()
    assert main(["evaluate", "run"]) == 2
    assert capsys.readouterr().err.strip().endswith("): give --selection or --steps")
    write(tmp_path / "there" / "train.jsonl", *labelled[:1], labelled[1] | {"step_labels": [0, 1]})
    assert main([*command, "data.root=there", "--resume"]) == 2
    assert "other training data" in capsys.readouterr().err
