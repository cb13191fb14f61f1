"""What ``dreamprm validate`` reports: all errors, true counts, duplicates and leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreamprm.cli import main
from dreamprm.data.findings import Findings
from tests.shared import SHARED, needs_shared

ROW: dict[str, Any] = {"domain": "d", "question": "q?", "steps": ["one"], "step_labels": [0.5]}


def write(path: Path, *rows: dict[str, Any] | str) -> str:
    lines = [
        row if isinstance(row, str) else json.dumps({"id": f"{path.stem}-{n}"} | row)
        for n, row in enumerate(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def report(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["validate", "--json", *arguments]) == status
    return json.loads(capsys.readouterr().out)


def found(findings: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(f["severity"], f["message"], f["count"]) for f in findings]


def test_every_wrong_row_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "x.jsonl",
        ROW,
        ROW | {"step_labels": [1.5]},
        '{"id": ',
        ROW,
        ROW | {"step_labels": [0.5, 0.5]},
        *[ROW | {"step_labels": [-n]} for n in range(1, 9)],
        ROW | {"id": "x-0"},
    )
    (file,) = report(capsys, 2, path)["files"]
    assert file["rows"] == 3
    errors = [f for f in file["findings"] if f["severity"] == "error"]
    assert found(errors) == [
        ("error", "the label of step 1 is 1.5, expected a number from 0 to 1 or null", 9),
        ("error", "not JSON: Expecting value at character 7", 1),
        ("error", "step_labels holds 2 labels, expected one for each of the 1 steps", 1),
        ("error", f"the id stands at {path}:1 already", 1),
    ]
    assert errors[0]["places"] == [f"{path}:{n}" for n in (2, 6, 7, 8, 9)]
    assert errors[3]["places"] == [f"{path}:14"]
    assert main(["validate", path]) == 2
    printed = capsys.readouterr()
    assert "9 × the label of step 1 is 1.5" in printed.out
    assert "at :2, :6, :7, :8, :9, …" in printed.out
    assert f"dreamprm: {path}:2: the label of step 1 is 1.5" in printed.err
    assert "(12 errors in all, above)" in printed.err


def test_every_wrong_row_of_another_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "q", "steps": ["s"], "outcome": True, "domain": "d"}
    path = write(
        tmp_path / "x.jsonl", row, row | {"outcome": 1}, "[]", row, row | {"domain": None}, row
    )
    (file,) = report(capsys, 2, path, "--format", "gsm8k-solutions")["files"]
    assert file["rows"] == 3
    errors = [f for f in file["findings"] if f["severity"] == "error"]
    assert {(f["message"], *f["places"]) for f in errors} == {
        ("outcome is 1, expected bool", f"{path}:2"),
        ("found list, expected an object", f"{path}:3"),
        ("domain is None, expected str", f"{path}:5"),
    }
    # Of rows that are each a solution, however many.
    many = write(tmp_path / "many.jsonl", *[row | {"outcome": 1}] * 150, row)
    (file,) = report(capsys, 2, many, "--format", "gsm8k-solutions")["files"]
    assert file["rows"] == 1
    assert ("error", "outcome is 1, expected bool", 150) in found(file["findings"])
    # Rows that merge: the others still do.
    train = {"input": "Q", "image_path": "", "dataset": "d"}
    steps = ["Step 1: a", "Step 1: a\nStep 2: b"]
    rows = [train | {"add": add, "accuracy": 0.5} for add in steps]
    (tmp_path / "t.json").write_text(json.dumps([rows[0], rows[0] | {"accuracy": 2}, rows[1]]))
    merged = report(capsys, 2, str(tmp_path / "t.json"), "--format", "dreamprm-train")["files"][0]
    assert merged["rows"] == 1
    assert merged["domains"]["d"]["steps"][2] == 1
    assert found(merged["findings"]) == [
        ("error", "accuracy is 2, expected a number from 0 to 1", 1)
    ]


def test_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"domain": "a", "question": "1", "steps": ["x"] * 3, "step_labels": [0, 0.05, 0.1]},
        {"domain": "a", "question": "2", "steps": ["x"] * 2, "step_labels": [1, None]},
        {"domain": "b", "question": "3", "steps": ["x" * 101], "outcome": True},
        {"domain": "b", "question": "4", "steps": ["x" * 300] * 17, "outcome": False},
    ]
    path = write(tmp_path / "x.jsonl", *rows)
    found = report(capsys, 0, path)
    a, b = (found["files"][0]["domains"][name] for name in "ab")
    assert a["labels"] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert (a["unlabelled"], b["unlabelled"]) == (1, 18)
    assert (b["solutions"], b["right"], b["wrong"], b["unknown"]) == (2, 1, 1, 0)
    assert found["edges"]["steps"] == [0, 1, 2, 4, 8, 16, 32]
    assert a["steps"] == [0, 0, 1, 1, 0, 0, 0, 0]
    assert b["steps"] == [0, 1, 0, 0, 0, 0, 1, 0]
    assert found["edges"]["characters"] == [100, 300, 1000, 3000, 10000, 100000]
    assert b["characters"] == [0, 1, 0, 0, 1, 0, 0]
    assert main(["validate", path]) == 0
    printed = capsys.readouterr().out
    assert "| a      |       2 |       1 |" in printed


def test_leaks_between_the_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("1", "red"), ("2", "blue"), ("3", "green")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "1.png", tmp_path / "copy-of-1.png")
    train = write(
        tmp_path / "train.jsonl",
        ROW | {"question": "What  IS\tthis?", "images": ["1.png"]},
        ROW | {"question": "Only text?", "domain": "e"},
        ROW | {"question": "Another", "images": ["2.png"]},
    )
    meta = write(
        tmp_path / "meta.jsonl",
        # The same question and picture, under another name.
        ROW | {"question": "what is this?", "images": ["copy-of-1.png"], "outcome": True},
        # The same words about another picture, and the same picture with other words.
        ROW | {"question": "Another", "images": ["3.png"], "outcome": False},
        ROW | {"question": "Something else", "images": ["2.png"], "outcome": False},
    )
    candidates = [{"steps": ["x"], "correct": True}, {"steps": ["y"], "correct": False}]
    test = write(
        tmp_path / "test.jsonl",
        {"question": "only text?", "candidates": candidates},
        {"question": "new", "candidates": candidates[:1]},
    )
    whole = report(capsys, 2, "--train", train, "--meta", meta, "--test", test)
    assert found(whole["sets"]) == [
        ("error", "train and meta share questions, with their images", 1),
        ("warning", "train and meta share texts of questions, with other images", 1),
        ("warning", "train and meta share images", 2),
        ("error", "train and test share questions, with their images", 1),
    ]
    assert whole["sets"][0]["places"] == [f"{train}:1 and {meta}:1"]
    assert whole["sets"][3]["places"] == [f"{train}:2 and {test}:1"]
    (file,) = [file for file in whole["files"] if file["set"] == "test"]
    assert found(file["findings"]) == [
        ("warning", "all candidates are right: nothing to choose", 1)
    ]
    ignoring = report(capsys, 2, "--train", train, "--meta", meta, "--images", "ignore")
    assert found(ignoring["sets"]) == [
        ("error", "train and meta share questions, with their images", 2)
    ]
    fine = write(
        tmp_path / "fine.jsonl", *(ROW | {"question": f"{n}", "outcome": n > 0} for n in range(2))
    )
    assert report(capsys, 0, "--train", train, "--meta", fine)["sets"] == []


def test_missing_images_by_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", *[ROW | {"images": ["1.png"]}] * 3)
    (finding, *_) = report(capsys, 2, path)["files"][0]["findings"]
    assert (finding["severity"], finding["count"]) == ("error", 3)
    assert finding["message"] == f"there is no image {tmp_path / '1.png'}"
    (finding, *_) = report(capsys, 0, path, "--images", "skip_missing")["files"][0]["findings"]
    assert finding["severity"] == "warning"
    ignored = report(capsys, 0, path, "--images", "ignore")["files"][0]["findings"]
    assert all("no image" not in finding["message"] for finding in ignored)


def test_kinds_are_told_apart_by_words_not_values() -> None:
    findings = Findings()
    for message in ("id is 3, expected text", "id is 'it\\'s', expected text", "id is -1.5e3, e"):
        findings.add("error", message, "x:1")
    findings.add("warning", "id is 3, expected text")
    assert [(f.severity, f.count) for f in findings] == [("error", 2), ("error", 1), ("warning", 1)]
    for number in range(2000):
        findings.add("error", "x" * number)
    assert len(findings.kinds) == 1001
    assert sum(f.count for f in findings) == 2004


@needs_shared
def test_the_quirks_of_real_data(capsys: pytest.CaptureFixture[str]) -> None:
    meta = str(SHARED / "dreamprm_meta.json")
    whole = report(
        capsys, 2, "--meta", meta, "--meta-format", "dreamprm-meta", "--images", "skip_missing"
    )
    (file,) = whole["files"]
    assert file["rows"] == 500
    assert [(f["severity"], f["count"]) for f in file["findings"]] == [
        ("warning", 500),  # images that are not there
        ("warning", 372),  # questions without a step
    ]
    assert (file["domains"]["meta"]["right"], file["domains"]["meta"]["wrong"]) == (249, 251)
    assert "all 128 usable solutions of meta are right" in whole["sets"][0]["message"]
    mathv = report(capsys, 0, str(SHARED / "mathv"), "--format", "math-vision")["files"][0]
    assert (mathv["rows"], mathv["findings"]) == (600, [])
    assert sum(d["right"] for d in mathv["domains"].values()) == 116
    solutions = str(SHARED / "gsm8k_solutions.jsonl")
    gsm8k = report(capsys, 0, solutions, "--format", "gsm8k-solutions")["files"][0]
    assert gsm8k["rows"] == 3600
    assert gsm8k["domains"]["6b_finetuning"]["right"] == 200
    rows = [json.loads(line) for line in Path(solutions).read_text().splitlines()]
    # Without their calculator annotations, some solutions to one question are the same.
    (repeated,) = gsm8k["findings"]
    assert repeated["severity"] == "warning"
    assert repeated["count"] >= len(rows) - len({(row["prompt"], *row["steps"]) for row in rows})
