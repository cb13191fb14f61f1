"""Reading and writing trajectories: round trips, the published formats, and what is refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image

from dreamprm.data.formats import (
    load_questions,
    load_trajectories,
    save_questions,
    save_trajectories,
)
from dreamprm.data.splits import label_steps_by_outcome, shuffled_copy, split_by_question
from dreamprm.data.synthetic import draw_synthetic
from dreamprm.data.trajectory import Trajectory, group_candidates
from dreamprm.errors import UserError
from tests.shared import SHARED, needs_shared

ROW: dict[str, Any] = {"id": "a", "domain": "d", "question": "q?", "steps": ["one", "two"]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_round_trip_in_every_file_kind(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    image = tmp_path / "img" / "1.png"
    Image.new("RGB", (56, 56)).save(image)
    rows = [
        Trajectory("a", "d", "größer?", ("one", "two"), (image,), (0.25, None), True, "1.79"),
        Trajectory("b", "d", "q?", ()),
    ]
    save_trajectories(tmp_path / "x.jsonl", rows)
    assert load_trajectories(tmp_path / "x.jsonl") == rows
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert records[0]["images"] == ["img/1.png"]
    (tmp_path / "x.json").write_text(json.dumps(records))
    assert load_trajectories(tmp_path / "x.json") == rows
    Dataset.from_list([r | {"outcome": True} for r in records]).to_parquet(tmp_path / "x.parquet")
    assert [r.steps for r in load_trajectories(tmp_path / "x.parquet")] == [r.steps for r in rows]


def test_questions_round_trip(tmp_path: Path) -> None:
    rows = [
        Trajectory("1", "x", "q?", ("s",), outcome=True, answer="3"),
        Trajectory("2", "y", "q?", (), outcome=False),
        Trajectory("3", "x", "other?", ("t",), outcome=False),
        Trajectory("4", "x", "other?", ("t",)),
    ]
    questions = group_candidates(rows)
    assert [len(q.candidates) for q in questions] == [2, 1]
    save_questions(tmp_path / "q.jsonl", questions)
    assert load_questions(tmp_path / "q.jsonl") == questions
    first, second = questions[0].trajectories()
    assert (first.outcome, first.answer, first.domain) == (True, "3", "x")
    assert first.question_key == second.question_key


def test_bom_crlf_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n")
    assert load_trajectories(path)[0].steps == ("one", "two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": ["one", " "]}, "step 2 is ' '"),
        ({"steps": "one"}, "steps is str, expected a list"),
        ({"steps": ["one", 2]}, "step 2 is 2"),
        ({"step_labels": [0.5]}, "holds 1 labels, expected one for each of the 2 steps"),
        ({"step_labels": [0.5, 1.5]}, "label of step 2 is 1.5"),
        ({"step_labels": [float("nan"), 1]}, "label of step 1 is nan"),
        ({"step_labels": [True, 1]}, "label of step 1 is True"),
        ({"outcome": 1}, "outcome is 1, expected true or false"),
        ({"question": ""}, "question is '', expected text"),
        ({"id": 7}, "id is 7, expected text"),
        ({"answer": 3}, "answer is 3, expected text"),
        ({"image": "x.png"}, "did you mean 'images'"),
        ({"images": "x.png"}, "images is 'x.png', expected a list"),
        ({"images": ["../x.png"]}, "outside the folder"),
        ({"images": ["/etc/passwd"]}, "is absolute, expected a path relative"),
        ({"images": ["x.png"]}, "there is no image"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "x.jsonl", ROW, ROW | {"id": "b"} | change)
    with pytest.raises(UserError, match=message) as error:
        load_trajectories(path)
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "holds no rows"),
        ("x.jsonl", b'{"id": ', r"x\.jsonl:1: not JSON"),
        ("x.jsonl", b"[1]\n", "found list, expected an object"),
        ("x.json", b"{}", "holds dict, expected an array"),
        ("x.jsonl", b"\xff\xfe\x00", "is UTF-16 text, expected UTF-8"),
        ("x.csv", b"a,b", "ends in '.csv'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_trajectories(tmp_path / name)


def test_more_that_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROW, ROW)
    with pytest.raises(UserError, match=r":2: id 'a' stands at .*:1 already"):
        load_trajectories(path)
    with pytest.raises(UserError, match="there is no file"):
        load_trajectories(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="did you mean 'canonical'"):
        load_trajectories(path, "canonicle")
    with pytest.raises(UserError, match="did you mean 'ignore'"):
        load_trajectories(path, images="ignored")
    row = ROW | {"steps": None}
    del row["steps"]
    with pytest.raises(UserError, match="has no 'steps'"):
        load_trajectories(write(path, row))
    outside = Trajectory("a", "d", "q?", (), (Path("/etc/passwd"),))
    with pytest.raises(UserError, match="is outside"):
        save_trajectories(tmp_path / "y.jsonl", [outside])
    assert not (tmp_path / "y.jsonl").exists()


def test_missing_images_are_counted_or_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.jsonl", ROW | {"images": ["1.png"]}, ROW | {"id": "b"})
    with caplog.at_level(logging.WARNING, "dreamprm"):
        rows = load_trajectories(path, images="skip_missing")
    assert [row.images for row in rows] == [(), ()]
    assert "images of 1 of 2 rows are missing" in caplog.text
    assert load_trajectories(path, images="ignore")[0].images == ()


def train_row(add: str, accuracy: float, **change: Any) -> dict[str, Any]:
    row = {"input": "Q", "add": add, "image_path": "", "dataset": "chartqa", "accuracy": accuracy}
    return row | change


def test_dreamprm_rows_merge_into_solutions(tmp_path: Path) -> None:
    rows = [
        # One solution whose second step no row ends at.
        train_row("Step 1: a", 0.5),
        train_row("Step 1: a\nStep 2: b\nStep 3: c", 0.75),
        # Another to the same question that shares the first step.
        train_row("Step 1: a\nStep 2: x", 0.25),
        # The same words in another domain.
        train_row("Step 1: a", 1.0, dataset="ai2d"),
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    found = load_trajectories(tmp_path / "train.json", "dreamprm-train")
    assert [(row.domain, row.steps, row.step_labels) for row in found] == [
        ("chartqa", ("Step 1: a", "Step 2: b", "Step 3: c"), (0.5, None, 0.75)),
        ("chartqa", ("Step 1: a", "Step 2: x"), (0.5, 0.25)),
        ("ai2d", ("Step 1: a",), (1.0,)),
    ]
    assert len({row.id for row in found}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 1.2}, "row 1: accuracy is 1.2"),
        ({"accuracy": True}, "accuracy is True"),
        ({"add": " "}, "add is empty"),
        ({"dataset": None}, "dataset is None, expected str"),
        ({"image_path": "../../x.png"}, "outside the folder"),
    ],
)
def test_wrong_dreamprm_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps([train_row("Step 1: a", 0.5) | change]))
    with pytest.raises(UserError, match=message):
        load_trajectories(tmp_path / "t.json", "dreamprm-train", images="ignore")


@needs_shared
def test_the_published_meta_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dreamprm"):
        rows = load_trajectories(
            SHARED / "dreamprm_meta.json", "dreamprm-meta", images="skip_missing"
        )
    assert len(rows) == len({row.id for row in rows}) == 500
    stepped = [row for row in rows if row.steps]
    assert Counter(len(row.steps) for row in stepped) == {5: 128}
    assert all(row.outcome for row in stepped)
    assert "372 of 500 rows hold a question without a step" in caplog.text
    assert "images of 500 of 500 rows are missing" in caplog.text
    first = stepped[0]
    assert first.answer == "B"
    assert first.question.startswith("Question: The following diagram")
    assert first.question.endswith("Options: (A) True (B) False")
    assert first.steps[0].startswith("Step 1: Restate the question.")


@needs_shared
def test_math_vision() -> None:
    rows = load_trajectories(SHARED / "mathv", "math-vision")
    assert len(rows) == 600
    assert sum(bool(row.outcome) for row in rows) == 116
    assert set(Counter(row.domain for row in rows).values()) == {120}
    assert len(group_candidates(rows)) == 120
    responses = [json.loads(s) for s in (SHARED / "mathv/responses.jsonl").read_text().splitlines()]
    for row, response in zip(rows, responses, strict=True):
        assert "".join("".join(row.steps).split()) == "".join(response["response"].split())


@needs_shared
def test_gsm8k_solutions() -> None:
    rows = load_trajectories(SHARED / "gsm8k_solutions.jsonl", "gsm8k-solutions")
    assert len(rows) == 3600
    right = Counter(row.domain for row in rows if row.outcome)
    shares = {domain: round(count / 9, 1) for domain, count in right.items()}
    assert shares == {
        "6b_finetuning": 22.2,
        "6b_verification": 40.1,
        "175b_finetuning": 35.0,
        "175b_verification": 57.3,
    }
    assert not any("<<" in step for row in rows for step in row.steps)


def solutions(questions: int) -> list[Trajectory]:
    return [
        Trajectory(f"{q}/{k}", "ab"[k], f"q{q}", ("s", "t"), outcome=(q + k) % 3 == 0)
        for q in range(questions)
        for k in range(2)
    ]


def test_splits_keep_questions_whole_and_do_not_depend_on_the_order() -> None:
    rows = solutions(20)
    shares = {"train": 0.5, "meta": 0.25, "test": 0.25}
    splits = split_by_question(rows, shares, seed=1)
    keys = {name: {row.question for row in split} for name, split in splits.items()}
    assert [len(keys[name]) for name in shares] == [10, 5, 5]
    assert len(set.union(*keys.values())) == 20
    again = split_by_question(rows[::-1], shares, seed=1)
    assert {name: {r.question for r in split} for name, split in again.items()} == keys
    other = split_by_question(rows, shares, seed=2)
    assert {row.question for row in other["train"]} != keys["train"]
    with pytest.raises(UserError, match="too few"):
        split_by_question(rows[:2], shares, seed=1)
    with pytest.raises(UserError, match="at most 1"):
        split_by_question(rows, {"train": 0.9, "meta": 0.2}, seed=1)


def test_labels_by_outcome_and_the_shuffled_control() -> None:
    rows = label_steps_by_outcome(solutions(3))
    assert rows[0].step_labels == (1.0, 1.0)
    assert rows[1].step_labels == (0.0, 0.0)
    kept = Trajectory("x", "a", "q", ("s", "t"), step_labels=(0.5, None), outcome=True)
    assert label_steps_by_outcome([kept])[0].step_labels == (0.5, 1.0)
    copy = shuffled_copy(solutions(30), "a", seed=0)
    original = [row for row in solutions(30) if row.domain == "a"]
    assert {row.domain for row in copy} == {"a-shuffled"}
    assert sum(bool(r.outcome) for r in copy) == sum(bool(r.outcome) for r in original)
    assert [r.outcome for r in copy] != [r.outcome for r in original]
    with pytest.raises(UserError, match="unknown domain 'c'"):
        shuffled_copy(solutions(3), "c", seed=0)


def test_the_built_in_domains_are_what_they_say(tmp_path: Path) -> None:
    qualities = ("clean", "noisy", "random", "wrong_images", "inverted", "easy")
    draw_synthetic(tmp_path, {q: q for q in qualities}, 200, 50, 20, 8, seed=0).save(tmp_path)

    def right_so_far(row: Trajectory) -> list[bool]:
        scene = row.images[0].stem.split("-")
        facts = {f"Square {place} is {colour}." for place, colour in enumerate(scene, 1)}
        return [all(s in facts for s in row.steps[: i + 1]) for i in range(4)]

    agree = {}
    for quality in qualities:
        rows = load_trajectories(tmp_path / f"train-{quality}.jsonl")
        assert len(rows) == 200
        pairs = [
            (label > 0.5) == right
            for row in rows
            for label, right in zip(row.step_labels or (), right_so_far(row), strict=True)
            if label is not None
        ]
        agree[quality] = sum(pairs) / len(pairs)
        if quality == "easy":
            assert all(len(set(row.images[0].stem.split("-"))) == 1 for row in rows)
            assert all(row.images[0].stem.split("-")[0] in row.question for row in rows)
    # Monte Carlo labels of 8 completions are right of 0.5 almost always; 800 labels a domain put
    # the standard error of a share under 2 %.
    assert agree["clean"] > 0.97
    assert agree["easy"] > 0.97
    assert agree["inverted"] < 0.05
    assert 0.6 < agree["noisy"] < 0.8
    assert 0.35 < agree["random"] < 0.65
    assert 0.3 < agree["wrong_images"] < 0.75
    meta = load_trajectories(tmp_path / "meta.jsonl")
    assert all(not row.has_labels and row.outcome == right_so_far(row)[-1] for row in meta)
    questions = load_questions(tmp_path / "test.jsonl")
    assert [len(q.candidates) for q in questions] == [8] * 20
    with pytest.raises(UserError, match="did you mean 'clean'"):
        draw_synthetic(tmp_path, {"x": "cleen"}, 1, 1, 1, 1, seed=0).save(tmp_path)
