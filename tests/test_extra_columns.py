"""Columns that are none of the format's own: kept, read back from everywhere, and grouped by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from dreamprm.cli import main
from dreamprm.data.formats import load_trajectories, save_trajectories
from dreamprm.data.stored import open_stored
from dreamprm.data.table import TrajectoryTable
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

ROW: dict[str, Any] = {"id": "a", "domain": "d", "question": "q?", "steps": ["one", "two"]}
ROWS: list[dict[str, Any]] = [
    ROW | {"outcome": True, "level": 3, "where": {"book": ["größer", None, 0.5]}},
    ROW | {"id": "b", "domain": "e", "steps": [], "level": "hard", "extra": False},
    {k: v for k, v in ROW.items() if k != "domain"} | {"id": "c", "outcome": False, "level": None},
]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    lines = [json.dumps(row) for row in rows]
    array = path.suffix == ".json"
    path.write_text("[" + ",\n".join(lines) + "]" if array else "\n".join(lines))
    return path


def tables(path: Path) -> list[TrajectoryTable]:
    """In memory and on disk."""
    stored = open_stored(path, "canonical", "require")
    return [TrajectoryTable.of(load_trajectories(path)), stored]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_they_are_kept(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, *ROWS)
    for table in tables(path):
        assert [dict(row.extra) for row in table] == [
            {"level": 3, "where": {"book": ["größer", None, 0.5]}},
            {"level": "hard", "extra": False},
            {"level": None},
        ]
    save_trajectories(tmp_path / "again.jsonl", load_trajectories(path))
    assert [json.loads(line) for line in (tmp_path / "again.jsonl").open()] == ROWS
    # With the format told by the keys.
    assert (
        main(["convert", str(path), "--to", "canonical", "--out", str(tmp_path / "c.jsonl")]) == 0
    )
    assert (tmp_path / "c.jsonl").read_text() == (tmp_path / "again.jsonl").read_text()
    assert main(["validate", str(path)]) == 0


def test_parquet_has_no_nulls(tmp_path: Path) -> None:
    rows = [ROW | {"level": 3, "tags": ["x"]}, ROW | {"id": "b", "level": None, "tags": None}]
    Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    for table in tables(tmp_path / "x.parquet"):
        assert [row.extra for row in table] == [{"level": 3, "tags": ["x"]}, {}]
        assert table.column("level") == [3, None]


def test_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *ROWS)
    expected: dict[str, list[Any]] = {
        "id": ["a", "b", "c"],
        "domain": ["d", "e", None],
        "outcome": [True, None, False],
        "steps": [2, 0, 2],
        "step_labels": [row.get("step_labels") and tuple(row["step_labels"]) for row in ROWS],
        "level": [3, "hard", None],
        "extra": [None, False, None],
    }
    for table in tables(path):
        for name, values in expected.items():
            assert table.column(name) == values
            assert table.take(np.array([2, 1, 0])).column(name) == values[::-1]
            assert TrajectoryTable.concatenate([table, table]).column(name) == values * 2
        known = "domain, extra, id, level, outcome, step_labels, steps, where"
        message = f"unknown column 'levels': did you mean 'level'. known are {known}"
        with pytest.raises(UserError, match=message):
            table.column("levels")
        with pytest.raises(UserError, match=r"unknown column 'where'.*domain, id, level, outcome"):
            table.take(np.array([2])).column("where")


def test_domain_and_outcome_are_known_without_reading(tmp_path: Path) -> None:
    (_, table) = tables(write(tmp_path / "x.jsonl", *ROWS))

    def read(row: int) -> Trajectory:
        raise AssertionError(f"row {row} is read")

    unread = TrajectoryTable(read, table.columns)
    assert unread.column("domain") == ["d", "e", None]
    assert unread.column("outcome") == [True, None, False]


@pytest.mark.parametrize("key", ["image", "Images", "outcomes", "step_label", "anwser", "domain_"])
def test_a_misspelling_is_refused(key: str, tmp_path: Path) -> None:
    bare = {k: v for k, v in ROW.items() if k != "domain"}
    path = write(tmp_path / "x.jsonl", bare, bare | {"id": "b", key: None})
    with pytest.raises(UserError, match=rf"x\.jsonl:2: unknown key '{key}': did you mean"):
        load_trajectories(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_what_looks_like_a_key_that_is_there_is_kept(name: str, tmp_path: Path) -> None:
    """In what is written as well, where an unknown answer is left out otherwise."""
    path = write(tmp_path / name, ROW | {"answer": None, "answers": ["1"], "question_id": 7})
    for table in tables(path):
        assert table.column("answers") == [["1"]]
        assert table.column("question_id") == [7]
    rows = load_trajectories(path)
    save_trajectories(tmp_path / "again.jsonl", rows)
    assert load_trajectories(tmp_path / "again.jsonl") == rows


def test_a_row_is_hashed_and_compared() -> None:
    row = Trajectory("1", "d", "q?", ("one",))
    other = Trajectory("1", "d", "q?", ("one",), extra={"level": [1]})
    assert row != other
    assert len({row, other, Trajectory("1", "d", "q?", ("one",))}) == 2
    with pytest.raises(UserError, match="extra holds 'outcome'"):
        Trajectory("1", "d", "q?", ("one",), extra={"outcome": True})
