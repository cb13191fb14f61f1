"""dreamprm convert: the format is told, the file is whole, and what is lost is counted."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamprm.cli import main
from dreamprm.data import convert
from dreamprm.data.adapters import FORMATS
from dreamprm.data.convert import convert_file
from dreamprm.data.formats import find_format, load_questions, load_trajectories
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from tests.shared import SHARED, needs_shared

ROW: dict[str, Any] = {"id": "a", "domain": "d", "question": "q?", "steps": ["one", "two"]}

# The file, its format, its solutions, and what the one warning of its reader says.
REAL = [
    ("dreamprm_meta.json", "dreamprm-meta", 500, "372 of 500 rows hold a question without a step"),
    ("dreamprm15_meta_sample.json", "dreamprm15", 284, ""),
    ("gsm8k_solutions.jsonl", "gsm8k-solutions", 3600, ""),
    ("prmbench_subset.jsonl", "prmbench", 214, "6 of 214 rows name an error step beyond the last"),
    ("mathv", "math-vision", 600, ""),
    ("wemath/wemath.jsonl", "we-math", 60, ""),
    ("formats/prm800k.jsonl", "prm800k", 22, ""),
    ("formats/math_shepherd.jsonl", "math-shepherd", 5, ""),
    ("formats/math_aps_list.jsonl", "math-aps", None, ""),
    ("formats/math_aps_tree.jsonl", "math-aps", 222, ""),
    ("formats/trl_stepwise.jsonl", "trl", 28, ""),
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@needs_shared
@pytest.mark.parametrize(("file", "name", "rows", "warning"), REAL)
def test_all_the_real_files_convert(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    name: str,
    rows: int | None,
    warning: str,
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["convert", str(SHARED / file), "--to", "canonical", "--out", str(out)]
    assert main([*command, "--images", "ignore", "--domain", "mine"]) == 0
    assert f"is read as {name}" in caplog.text
    assert warning in caplog.text
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == bool(warning)
    found = load_trajectories(out)
    assert {row.domain for row in found} == {"mine"}
    if rows is not None:
        assert len(found) == rows
    # What is canonical is recognised as such, and converts into the same bytes.
    again = tmp_path / "again.jsonl"
    assert main(["convert", str(out), "--to", "canonical", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


@needs_shared
def test_images_stay_with_the_file(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "mathv", tmp_path / "mathv")
    out = tmp_path / "mathv.jsonl"
    convert_file(tmp_path / "mathv", out, "candidates")
    questions = load_questions(out)
    assert len(questions) == 120
    assert all(len(question.candidates) == 5 for question in questions)
    assert json.loads(out.read_text().splitlines()[0])["images"] == ["mathv/images/27.jpg"]
    with pytest.raises(UserError, match="write it to a folder above its images"):
        convert_file(tmp_path / "mathv", tmp_path / "else" / "x.jsonl", "canonical")
    assert not list((tmp_path / "else").iterdir())


def test_solutions_are_counted_and_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dreamprm")
    three = [ROW | {"id": name, "outcome": True} for name in "abc"]
    source = write(tmp_path / "in.jsonl", *three, ROW | {"id": "d", "question": "other?"})
    convert_file(source, tmp_path / "out.jsonl", "candidates")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1
    assert "out.jsonl: 3 of 4 solutions, in 1 rows" in caplog.text


def test_what_is_lost_and_left_out_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(
        tmp_path / "in.jsonl",
        ROW | {"step_labels": [0.25, 0.0], "answer": "3"},
        ROW | {"id": "b", "step_labels": [1.0, 0.0]},
        ROW | {"id": "c", "step_labels": [1.0, None]},
        ROW | {"id": "d", "steps": []},
    )
    with caplog.at_level(logging.INFO, "dreamprm"):
        convert_file(source, tmp_path / "out.jsonl", "trl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows] == [[True, False], [True, False]]
    assert "2 of 4 solutions are left out; without a label for every step: 2" in caplog.text
    assert (
        "trl cannot hold answer (1 solutions), domain (2 solutions), id (2 solutions), "
        "labels between 0 and 1 (1 solutions)" in caplog.text
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "trll"], "did you mean 'trl'"),
        (["--to", "math-aps"], "math-aps is only read; known for writing are canonical"),
        (["--to", "trl", "--from", "prm80k"], "did you mean 'prm800k'"),
        (
            ["--to", "trl"],
            "none of the 1 solutions can be written as trl, which needs a label for every",
        ),
        (["--to", "canonical", "--images", "no"], "unknown choice of images 'no'"),
        (["--to", "canonical", "--out", "x.csv"], "ends in '.csv', expected .jsonl or .json"),
        (["--to", "canonical", "--out", "folder.json"], "is a folder, expected a file"),
        (["--to", "canonical", "--out", "there.jsonl"], "there already: --overwrite replaces it"),
        (["--to", "canonical", "--out", "in.jsonl/x.jsonl"], "cannot write"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", ROW)
    (tmp_path / "there.jsonl").write_text("kept")
    (tmp_path / "folder.json").mkdir()
    before = sorted(tmp_path.iterdir())
    assert main(["convert", "in.jsonl", "--out", "out.jsonl", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.jsonl").read_text() == "kept"


@pytest.mark.parametrize("error", [UserError("in.jsonl:2: wrong"), KeyboardInterrupt(), OSError()])
def test_the_output_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(*arguments: Any) -> Iterator[Trajectory]:
        yield Trajectory("a", "d", "q?", ("s",))
        raise error

    source = write(tmp_path / "in.jsonl", ROW)
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    monkeypatch.setattr(convert, "iterate_trajectories", broken)
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        convert_file(source, out, "canonical", overwrite=True)
    assert out.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_an_array_in_place_of_its_source(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROW, ROW | {"id": "b", "answer": "größer"})
    convert_file(path, tmp_path / "x.json", "canonical")
    assert load_trajectories(tmp_path / "x.json") == load_trajectories(path)
    convert_file(tmp_path / "x.json", tmp_path / "x.json", "canonical", overwrite=True)
    assert load_trajectories(tmp_path / "x.json", "auto") == load_trajectories(path)


def test_the_format_is_told_or_the_candidates_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"text": "a", "score": 1})
    with pytest.raises(
        UserError, match=r"keys of the first row: score, text.*none of those"
    ) as error:
        find_format("auto", path)
    assert all(name in str(error.value) for name in FORMATS)
    both = {"prompt": "q", "completions": ["a"], "labels": [True], "steps_with_score": []}
    with pytest.raises(UserError, match="it could be trl, visualprm400k-raw; name one of"):
        find_format("auto", write(path, both))
    # Rows of two formats are none.
    trl = {"prompt": "q", "completions": ["a"], "labels": [True]}
    with pytest.raises(UserError, match="it could be none"):
        find_format("auto", write(path, ROW, trl))
    with pytest.raises(UserError, match="holds no rows"):
        find_format("auto", write(path))
    with pytest.raises(UserError, match="there is no file"):
        find_format("auto", tmp_path / "nothing.jsonl")
