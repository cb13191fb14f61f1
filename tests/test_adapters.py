"""Every format: what is read of real rows, what comes back after writing, and what is lost."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreamprm.data.adapters import FORMATS, Format
from dreamprm.data.adapters.format import NEEDS, PROPERTIES
from dreamprm.data.convert import convert_file
from dreamprm.data.formats import load_questions, load_trajectories, save_rows
from dreamprm.data.trajectory import Trajectory, group_candidates
from dreamprm.errors import UserError
from tests.shared import SHARED, needs_shared

WRITABLE = [name for name, format in FORMATS.items() if format.write is not None]
DOCS = Path(__file__).parents[1] / "docs" / "data.md"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def there_and_back(format: Format, rows: list[Trajectory], path: Path) -> list[Trajectory]:
    assert format.write is not None
    save_rows(path, format.write(rows, path.parent))
    return [row for _, row in format.read(path)]


def plain() -> Trajectory:
    """What every format that is written can hold, but for the id."""
    return Trajectory(
        "1", "d", "Größer?", ("Step 1: a", "Step 2: b"), step_labels=(1.0, 0.0), outcome=False
    )


# A trajectory that has the property, from one that every format holds.
WITH: dict[str, Callable[[Trajectory, Path], Trajectory]] = {
    "id": lambda row, folder: replace(row, id="a-7"),
    "domain": lambda row, folder: replace(row, domain="chartqa"),
    "images": lambda row, folder: replace(row, images=(folder / "1.png",)),
    "images after the first": lambda row, folder: replace(
        row, images=(folder / "1.png", folder / "2.png")
    ),
    "step labels": lambda row, folder: row,
    "labels between 0 and 1": lambda row, folder: replace(row, step_labels=(0.25, 0.0)),
    "labels after the first error": lambda row, folder: replace(row, step_labels=(0.0, 1.0)),
    "unlabelled steps, at the end or before one without a 'Step n' heading": (
        lambda row, folder: replace(row, step_labels=(1.0, None))
    ),
    "steps without a 'Step n' heading": lambda row, folder: replace(row, steps=("a", "b")),
    "a first step that does not begin with 'Step 1:'": (
        lambda row, folder: replace(row, steps=("a", "Step 2: b"))
    ),
    "white space around steps": lambda row, folder: replace(
        row, steps=("Step 1: a\n", "Step 2: b")
    ),
    "outcome": lambda row, folder: row,
    "answer": lambda row, folder: replace(row, answer="1.79"),
    "answer without steps": lambda row, folder: replace(
        row, steps=(), step_labels=None, answer="1"
    ),
    "extra columns": lambda row, folder: replace(row, extra={"level": 3, "tags": ["a", None]}),
}


# The fields that show whether a property came back.
SHOWN_BY = {
    "id": ("id",),
    "domain": ("domain",),
    "images": ("images",),
    "images after the first": ("images",),
    "step labels": ("step_labels",),
    "labels between 0 and 1": ("step_labels",),
    "labels after the first error": ("step_labels",),
    "unlabelled steps, at the end or before one without a 'Step n' heading": ("steps",),
    "steps without a 'Step n' heading": ("question", "steps"),
    "a first step that does not begin with 'Step 1:'": ("steps",),
    "white space around steps": ("steps",),
    "outcome": ("outcome",),
    "answer": ("answer",),
    "answer without steps": ("answer",),
    "extra columns": ("extra",),
}
WHOLE_FIELDS = {
    "id": "id",
    "domain": "domain",
    "images": "images",
    "step labels": "step_labels",
    "outcome": "outcome",
    "answer": "answer",
    "extra columns": "extra",
}


def writes(name: str, property_name: str) -> bool:
    row = WITH[property_name](plain(), Path())
    return all(NEEDS[need](row) for need in FORMATS[name].needs)


def test_the_cases_are_all_properties() -> None:
    assert set(WITH) == set(SHOWN_BY) == set(PROPERTIES)
    for format in FORMATS.values():
        assert format.cannot_hold <= set(PROPERTIES)
        assert format.needs <= set(NEEDS)
        # What is said to be lost has to be something that can be written.
        assert all(writes(format.name, name) for name in format.cannot_hold)


@pytest.mark.parametrize(
    ("name", "property_name"),
    [(n, p) for n in WRITABLE for p in PROPERTIES if writes(n, p)],
)
def test_a_format_holds_what_it_says_and_nothing_else(
    name: str, property_name: str, tmp_path: Path
) -> None:
    format = FORMATS[name]
    row = WITH[property_name](plain(), tmp_path)
    assert PROPERTIES[property_name](row)
    (back,) = there_and_back(format, [row], tmp_path / "x.jsonl")
    lost = {p for p in format.cannot_hold if PROPERTIES[p](row)}
    if property_name in lost:
        assert any(getattr(back, f) != getattr(row, f) for f in SHOWN_BY[property_name])
    elif lost <= set(WHOLE_FIELDS):
        gone = {WHOLE_FIELDS[p]: None for p in lost}
        assert vars(back) | gone == vars(row) | gone


@pytest.mark.parametrize("name", WRITABLE)
def test_what_a_format_needs(name: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    assert format.write is not None
    row = plain()
    assert all(NEEDS[need](row) for need in format.needs)
    bare = replace(row, steps=(), step_labels=None, outcome=None)
    source = tmp_path / "in.jsonl"
    write(source, replace(row, id="ok").to_record(tmp_path), bare.to_record(tmp_path))
    convert_file(source, tmp_path / "out.jsonl", name, "canonical")
    assert len(load_trajectories(tmp_path / "out.jsonl", name)) == (1 if format.needs else 2)
    # A text with the tag of Math-Shepherd cannot be told from its tags.
    russian = replace(row, question="реки?")
    assert NEEDS["a text without 'ки'"](russian) is False


def test_the_docs_table_says_what_is_lost() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", DOCS.read_text(), re.M)
    table = {name: cells.split("|") for name, cells in rows if name in FORMATS}
    assert list(table) == list(FORMATS)
    for name, cells in table.items():
        format, said = FORMATS[name], cells[-1].strip()
        if format.write is None:
            assert said == "only read", name
        else:
            found = [part.strip() for part in said.split(";")]
            expected = [p for p in PROPERTIES if p in format.cannot_hold] or ["nothing"]
            assert found == expected, name


def real(*parts: str) -> Path:
    return SHARED.joinpath(*parts)


ROUND_TRIPS = {
    "dreamprm-meta": ("dreamprm_meta.json",),
    "dreamprm15": ("dreamprm15_meta_sample.json",),
    "trl": ("formats", "trl_stepwise.jsonl"),
    "prm800k": ("formats", "prm800k.jsonl"),
    "math-shepherd": ("formats", "math_shepherd.jsonl"),
}


@needs_shared
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_real_rows_come_back(name: str, tmp_path: Path) -> None:
    source, format = real(*ROUND_TRIPS[name]), FORMATS[name]
    (tmp_path / "data").mkdir()
    copy = tmp_path / "data" / source.name
    shutil.copy(source, copy)
    rows = [row for _, row in format.read(copy)]
    out = tmp_path / "data" / f"{copy.stem}.jsonl" if copy.suffix == ".json" else copy
    back = there_and_back(format, rows, out)
    for one, other in zip(rows, back, strict=True):
        for field in ("question", "steps", "images", "step_labels", "outcome", "answer", "domain"):
            if name == "dreamprm15" and field == "answer":
                continue  # the response is written anew, from the steps
            assert getattr(one, field) == getattr(other, field), (one.id, field)
    if name in ("dreamprm-meta", "dreamprm15"):
        assert [row.id for row in rows] == [row.id for row in back]


@needs_shared
def test_real_files_come_back_as_they_were(tmp_path: Path) -> None:
    for name in ("trl", "math-shepherd"):
        source = real(*ROUND_TRIPS[name])
        written = FORMATS[name].write(load_trajectories(source, name), SHARED)  # type: ignore[misc]
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        assert list(written) == rows
    meta = load_trajectories(real("dreamprm_meta.json"), "dreamprm-meta", images="ignore")
    rows = json.loads(real("dreamprm_meta.json").read_text())
    back = list(FORMATS["dreamprm-meta"].write(meta, SHARED))  # type: ignore[misc]
    for one, other, row in zip(back, rows, meta, strict=True):
        assert (one["id"], one["true_false"]) == (other["id"], other["true_false"])
        # White space between the parts, and how "Final answer" is written, are not kept.
        if row.answer is None:
            assert "".join(one["input"].split()) == "".join(other["input"].split())


@needs_shared
def test_dreamprm15_takes_only_true_false(caplog: pytest.LogCaptureFixture) -> None:
    rows = load_trajectories(
        real("dreamprm15_meta_sample.json"), "dreamprm15", images="skip_missing"
    )
    assert len(rows) == 284
    source = json.loads(real("dreamprm15_meta_sample.json").read_text())
    assert [row.outcome for row in rows] == [row["true_false"] for row in source]
    assert not any(row.has_labels for row in rows)
    assert Counter(len(row.steps) for row in rows)[1] == 154
    assert len({row.question for row in rows}) == 71
    assert {"test_Energy_and_Power_152", "test_Energy_and_Power_152#4"} <= {row.id for row in rows}
    assert rows[0].answer == "C"
    assert not any(row.question.startswith("###") for row in rows)
    assert "placeholder" not in caplog.text
    assert "images of 284 of 284 rows are missing" in caplog.text
    assert "data/meta_images/test_" in caplog.text.replace(str(SHARED), "data")


@needs_shared
def test_prm800k_branches() -> None:
    rows = load_trajectories(real("formats", "prm800k.jsonl"), "prm800k")
    trl = load_trajectories(real("formats", "trl_stepwise.jsonl"), "trl")[5:]
    # TRL's script gives the same branches, and one prefix of others; it counts neutral as wrong.
    steps = {(row.question, row.steps): row for row in rows}
    assert len(rows) == len(steps) == 22
    shorter = [row for row in trl if (row.question, row.steps) not in steps]
    assert [len(row.steps) for row in shorter] == [6]
    differ = Counter()  # type: ignore[var-annotated]
    for row in trl:
        if row not in shorter:
            mine = steps[row.question, row.steps]
            differ.update(zip(mine.step_labels or (), row.step_labels or (), strict=True))
    assert set(differ) == {(1.0, 1.0), (0.0, 0.0), (None, 0.0), (None, 1.0)}


@needs_shared
def test_math_shepherd_labels() -> None:
    rows = load_trajectories(real("formats", "math_shepherd.jsonl"), "math-shepherd")
    trl = load_trajectories(real("formats", "trl_stepwise.jsonl"), "trl")[:5]
    assert [(r.question, r.steps, r.step_labels) for r in rows] == [
        (r.question, r.steps, r.step_labels) for r in trl
    ]
    assert [row.answer for row in rows] == ["13520", "16000", "40", "900", "52"]
    assert {row.domain for row in rows} == {"GSM8K"}


@needs_shared
def test_math_aps_leaves() -> None:
    def leaves(node: dict[str, Any]) -> int:
        return sum(map(leaves, node["children"])) or 1

    source = real("formats", "math_aps_tree.jsonl")
    rows = load_trajectories(source, "math-aps")
    trees = [json.loads(line)["reasoning_steps"] for line in source.read_text().splitlines()]
    assert len(rows) == sum(map(leaves, trees))
    assert all(row.steps and None not in (row.step_labels or (None,)) for row in rows)
    rows = load_trajectories(real("formats", "math_aps_list.jsonl"), "math-aps")
    lists = [
        json.loads(line)["reasoning_steps"]
        for line in real("formats", "math_aps_list.jsonl").read_text().splitlines()
    ]
    for number, prefixes in enumerate(lists):
        question = prefixes[0]["solution_prefix"]
        texts = {p["solution_prefix"]: p["mc_value"] for p in prefixes[1:]}
        mine = [row for row in rows if row.question == question]
        ends = [t for t in texts if not any(o != t and o.startswith(t) for o in texts)]
        assert len(mine) == len(ends), number
        for row, end in zip(mine, ends, strict=True):
            assert "".join("".join(row.steps).split()) == "".join(end[len(question) :].split())
            assert (row.step_labels or ())[-1] == texts[end]


@needs_shared
def test_prmbench_counts_errors_from_one(caplog: pytest.LogCaptureFixture) -> None:
    rows = load_trajectories(real("prmbench_subset.jsonl"), "prmbench")
    assert "6 of 214 rows name an error step beyond the last step" in caplog.text
    source = [json.loads(line) for line in real("prmbench_subset.jsonl").read_text().splitlines()]
    for row, original in zip(rows, source, strict=True):
        wrong = [i for i, p in enumerate(row.step_labels or (), start=1) if p == 0]
        assert wrong == [e for e in sorted(original["error_steps"]) if e <= len(row.steps)]
    assert Counter(row.domain for row in rows)["multi_solutions"] == 7
    assert rows[0].id == "prm_test_p1_0/confidence"


@needs_shared
def test_we_math_questions() -> None:
    rows = load_trajectories(real("wemath", "wemath.jsonl"), "we-math")
    assert len(rows) == 60
    assert not any(row.steps for row in rows)
    assert all(row.answer in "ABCDEFGH" and row.images for row in rows if row.answer)
    assert rows[0].question.endswith("\nA. 10;B. 12;C. 13;D. 15; E. No correct answer")


PROCESSBENCH = [
    {
        "id": "gsm8k-0",
        "generator": "unknown",
        "problem": "p",
        "steps": ["a", "b", "c"],
        "final_answer_correct": False,
        "label": 1,
    },
    {
        "id": "omni-math-12",
        "generator": "unknown",
        "problem": "q",
        "steps": ["a"],
        "final_answer_correct": True,
        "label": -1,
    },
    {
        "id": "math-3",
        "generator": "unknown",
        "problem": "q",
        "steps": ["a", "b"],
        "final_answer_correct": True,
        "label": 0,
    },
]


def conversation(image: Any, question: str, *turns: tuple[str, str]) -> dict[str, Any]:
    first = f"### Question:\n{question}\n\n### Solution Process:\n"
    said = []
    for number, (step, sign) in enumerate(turns):
        said.append({"from": "human", "value": (first if number == 0 else "") + step})
        said.append({"from": "gpt", "value": sign})
    return {"id": -1, "image": image, "conversations": said}


VISUALPRM = [
    conversation("1.png", "<image>\nHow many?", ("Two\n\nlines", "+"), ("So 3.", "-")),
    conversation(["1.png", "2.png"], "<image>\n<image>\nWhich?", ("B", "+")),
]
VISUALPROCESSBENCH = [
    {
        "image": ["1.png"],
        "question": "How many?",
        "data_source": "MMMU",
        "response": {"steps": ["a", "b", "c"], "process_correctness": [1, 0, -1]},
    },
    {
        "image": ["1.png", "2.png"],
        "question": "Which?",
        "data_source": "WeMath",
        "response": {"steps": ["a"], "process_correctness": [1]},
    },
]


@pytest.mark.parametrize(
    ("name", "source", "labels"),
    [
        ("processbench", PROCESSBENCH, [(1.0, 0.0, None), (1.0,), (0.0, None)]),
        ("visualprm400k", VISUALPRM, [(1.0, 0.0), (1.0,)]),
        ("visualprocessbench", VISUALPROCESSBENCH, [(1.0, None, 0.0), (1.0,)]),
    ],
)
def test_rows_of_published_schemas(
    tmp_path: Path, name: str, source: list[dict[str, Any]], labels: list[Any]
) -> None:
    for image in ("1.png", "2.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / image)
    path = write(tmp_path / "x.jsonl", *source)
    rows = load_trajectories(path, "auto")
    assert [row.step_labels for row in rows] == labels
    assert list(FORMATS[name].write(rows, tmp_path)) == source  # type: ignore[misc]
    assert not any("<image>" in row.question for row in rows)
    if name == "processbench":
        assert [row.domain for row in rows] == ["gsm8k", "omni-math", "math"]


def test_visualprm_raw_scores_and_system_turns(tmp_path: Path) -> None:
    scored = [
        {"step": "a", "score": 0.125, "num_mc_correct": 2, "num_mc_total": 16},
        {"step": " ", "score": 1.0},
        {"step": "b", "score": 0},
    ]
    row = {"question": "<image>\nq", "image": "1.png", "answer": "5", "steps_with_score": scored}
    (found,) = load_trajectories(write(tmp_path / "raw.jsonl", row), "auto", images="ignore")
    assert (found.question, found.steps, found.step_labels) == ("q", ("a", "b"), (0.125, 0.0))
    talk = conversation("1.png", "q", ("a", "+"))
    talk["conversations"].insert(0, {"from": "system", "value": "Judge."})
    (found,) = load_trajectories(write(tmp_path / "talk.jsonl", talk), "auto", images="ignore")
    assert (found.question, found.steps) == ("q", ("a",))


def test_dreamprm_train_comes_back(tmp_path: Path) -> None:
    rows = [
        Trajectory(
            "x", "ai2d", "q?", ("Step 1: a", "Step 2: b", "Step 3: c"), (), (0.5, None, 1.0)
        ),
        Trajectory("y", "chartqa", "q?", ("one", "two"), (), (0.25, 0.0)),
    ]
    back = there_and_back(FORMATS["dreamprm-train"], rows, tmp_path / "t.json")
    assert [replace(row, id="") for row in back] == [replace(row, id="") for row in rows]


def test_a_solution_that_begins_with_anothers_text_is_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        Trajectory("x", "d", "q?", ("x = 1",), (), (1.0,)),
        Trajectory("y", "d", "q?", ("x = 12", "so 12"), (), (0.0, 0.0)),
    ]
    path = tmp_path / "t.json"
    back = there_and_back(FORMATS["dreamprm-train"], rows, path)
    assert [(row.steps, row.step_labels) for row in back] == [
        (("x = 1",), (1.0,)),
        (("x = 12", "so 12"), (0.0, 0.0)),
    ]
    records = json.loads(path.read_text())
    path.write_text(json.dumps([*records, records[0] | {"accuracy": 0.25}]))
    assert load_trajectories(path, "dreamprm-train")[0].step_labels == (1.0,)
    assert "1 of 4 rows repeat a prefix with another label" in caplog.text


def test_candidates_flatten_and_group(tmp_path: Path) -> None:
    question = {
        "id": "7",
        "question": "q?",
        "answer": "3",
        "candidates": [
            {"response": "Step 1: a\n\nStep 2: b", "answer": "3", "correct": True},
            {"steps": ["c"], "correct": False, "step_labels": [0.5], "domain": "x"},
        ],
    }
    path = write(tmp_path / "q.jsonl", question)
    rows = load_trajectories(path, "auto")
    assert [row.id for row in rows] == ["7/0", "7/1"]
    assert rows[0].steps == ("Step 1: a", "Step 2: b")
    (read,) = load_questions(path)
    assert read.answer == "3"
    assert read.candidates == group_candidates(rows)[0].candidates
    back = there_and_back(FORMATS["candidates"], rows, tmp_path / "again.jsonl")
    assert [replace(row, id="") for row in back] == [replace(row, id="") for row in rows]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "trl": (
        {"prompt": "q", "completions": ["a"], "labels": [1]},
        "a label is 1, expected one of True",
    ),
    "prm800k": (
        {
            "question": {"problem": "q"},
            "label": {"steps": [{"completions": [{"text": "a", "rating": 2}]}]},
        },
        "rating is 2, expected one of 1, 0, -1, None",
    ),
    "math-shepherd": (
        {"input": "q Step 1: a ки", "label": "q Step 1: b +", "task": "MATH"},
        "label differs from input before tag 1",
    ),
    "math-aps": (
        {"question": "q", "reasoning_steps": [{"solution_prefix": "x", "mc_value": 1}]},
        "does not begin",
    ),
    "processbench": (PROCESSBENCH[0] | {"label": 3}, "label is 3, expected -1 or the index"),
    "prmbench": (
        {
            "modified_process": ["a"],
            "error_steps": [0],
            "classification": "c",
            "idx": "i",
            "modified_question": "q",
        },
        "error_steps has 0",
    ),
    "visualprm400k": (
        conversation("1.png", "q", ("a", "0")),
        "a reply is '0', expected one of '\\+', '-'",
    ),
    "visualprm400k-raw": (
        {"question": "q", "steps_with_score": [{"step": "a", "score": 2}]},
        "label of step 1 is 2",
    ),
    "visualprocessbench": (
        VISUALPROCESSBENCH[1] | {"response": {"steps": ["a"], "process_correctness": []}},
        "has 0 judgements of 1 steps",
    ),
    "dreamprm15": (
        {"id": "a", "response": "A", "true_false": True, "image": "", "conversations": []},
        "has 0 human turns",
    ),
    "candidates": (
        {"id": "a", "question": "q", "candidates": [{"response": 5}]},
        "response is 5, expected text",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_is_named(tmp_path: Path, name: str) -> None:
    row, message = WRONG[name]
    path = write(tmp_path / "x.jsonl", row)
    with pytest.raises(UserError, match=message) as error:
        load_trajectories(path, name, images="ignore")
    assert str(error.value).startswith(f"{path}:1: ")


def test_every_reader_counts_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"input": "no first step ки", "label": "no first step +", "task": "MATH"},
        {
            "input": "q Step 1: a ки\n \nStep 2: b ки",
            "label": "q Step 1: a +\n \nStep 2: b -",
            "task": "MATH",
        },
    ]
    with caplog.at_level(logging.WARNING, "dreamprm"):
        (row,) = load_trajectories(write(tmp_path / "x.jsonl", *rows), "math-shepherd")
    assert row.steps == ("Step 1: a", "Step 2: b")
    assert "1 of 2 rows have no 'Step 1:' before the first tag and are left out" in caplog.text
