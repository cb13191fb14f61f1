"""Kinds of bad input: each is one message with file and place, status 2, and nothing half-written.

Every kind of wrong solutions goes through each way that reads them: ``validate``, ``score``, and
``train`` with the data in memory and on disk.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image

from dreamprm.cli import main
from dreamprm.models.reward_model import SETTINGS_FILE

ROW: dict[str, Any] = {
    "id": "a",
    "domain": "d",
    "question": "q?",
    "steps": ["one", "two"],
    "step_labels": [0.5, 1],
}
QUESTION: dict[str, Any] = {
    "id": "a",
    "question": "q?",
    "candidates": [{"steps": ["one"], "correct": True}, {"steps": ["two"], "correct": False}],
}
Make = Callable[[Path], Path]


def text(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def raw(content: bytes, name: str = "x.jsonl") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def second(**change: Any) -> Make:
    """A good row, and one that differs from a good one as given; None leaves a key out."""
    row = {k: v for k, v in (ROW | {"id": "b"} | change).items() if v is not ...}
    return raw(text(ROW) + text(row))


def line(content: bytes) -> Make:
    return raw(text(ROW) + content + b"\n")


def array(*rows: Any, end: str = "]") -> Make:
    return raw(("[" + ",\n".join(map(json.dumps, rows)) + end).encode(), "x.json")


def folder_named(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def parquet(rows: list[dict[str, Any]], cut: int | None = None) -> Make:
    def make(folder: Path) -> Path:
        path = folder / "x.parquet"
        Dataset.from_list(rows).to_parquet(path)
        if cut is not None:
            path.write_bytes(path.read_bytes()[:cut])
        return path

    return make


def image(name: str, content: bytes | None = None) -> Make:
    """A row whose image has the bytes given, or is a folder."""

    def make(folder: Path) -> Path:
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
        return second(images=[name])(folder)

    return make


def link(to: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "link.png").symlink_to(to)
        return second(images=["link.png"])(folder)

    return make


def linked_file(folder: Path) -> Path:
    (folder / "x.jsonl").symlink_to("x.jsonl")
    return folder / "x.jsonl"


def png(size: tuple[int, int], cut: int | None = None) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).save(file, "PNG")
    return file.getvalue()[:cut]


DEEP = b'{"id": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"

# Name, how the file is made, and what the message says; {path} is the file.
SOLUTIONS: dict[str, tuple[Make, str]] = {
    "truncated line": (line(text(ROW)[:40]), "{path}:2: not JSON"),
    "truncated array": (array(ROW, ROW | {"id": "b"}, end=""), "not JSON: expected ',' or ']'"),
    "truncated in a row of an array": (raw(b"[" + text(ROW)[:40], "x.json"), "{path}: not JSON"),
    "trailing comma in an array": (array(ROW, end=",]"), "(line 1)"),
    "text after an array": (array(ROW, end="] x"), "text after the array"),
    "an object in the place of an array": (raw(text(ROW), "x.json"), "expected an array"),
    "JSON Lines named .json": (raw(text(ROW) * 2, "x.json"), "one object a line is .jsonl"),
    "a list in the place of an object": (line(b"[1]"), "{path}:2: found list, expected an object"),
    "a number in an array": (array(ROW, 7), "{path}: row 2: found int, expected an object"),
    "one object over many lines": (
        raw(json.dumps(ROW, indent=1).encode()),
        "{path}:1: not JSON: Expecting property name enclosed in double quotes at character 2 "
        "(.jsonl has a whole object on every line",
    ),
    "single quotes": (line(str(ROW).encode()), "{path}:2: not JSON"),
    "two objects on a line": (line(text(ROW).strip() * 2), "{path}:2: not JSON: Extra data"),
    "a key twice": (line(b'{"id": "b", "id": "c"}'), "{path}:2: not JSON: key 'id' stands twice"),
    "a key twice in an array": (raw(b'[{"id": 1, "id": 2}]', "x.json"), "key 'id' stands twice"),
    "deep nesting": (line(DEEP), "{path}:2: not JSON: nested too deep"),
    "deep nesting in an array": (raw(b"[" + DEEP + b"]", "x.json"), "nested too deep"),
    "a huge integer": (line(
        b'{"id": "b", "question": "q", "steps": ["s"], "step_labels": [' + b"9" * 5000 + b"]}"
    ), "{path}:2: not JSON: Exceeds the limit (4300 digits)"),
    "an integer beyond floats": (second(step_labels=[10**400, 1]), "label of step 1 is 1000"),
    "half a surrogate pair": (second(id="\ud83d"), "{path}:2: \\ud83d is half"),
    "half a surrogate pair in an array": (array(ROW | {"id": "\ude00"}), "row 1: \\ude00 is half"),
    "no id": (second(id=...), "{path}:2: has no 'id'"),
    "no steps": (second(steps=...), "{path}:2: has no 'steps'"),
    "no question": (second(question=...), "{path}:2: has no 'question'"),
    "a misspelt key": (second(image="x"), "{path}:2: unknown key 'image': did you mean 'images'"),
    "an id that is no text": (second(id=7), "{path}:2: id is 7, expected text"),
    "an empty id": (second(id=" "), "{path}:2: id is ' ', expected text"),
    "an id twice": (raw(text(ROW) * 2), "{path}:2"),
    "a domain that is no text": (second(domain=["d"]), "domain is ['d'], expected text"),
    "a null question": (second(question=None), "{path}:2: question is None, expected text"),
    "a question that is a number": (second(question=3), "question is 3, expected text"),
    "steps in one text": (second(steps="one"), "{path}:2: steps is str, expected a list"),
    "null steps": (second(steps=None), "steps is NoneType, expected a list"),
    "a blank step": (second(steps=["one", " \t"]), "{path}:2: step 2 is ' \\t', expected text"),
    "an empty step": (second(steps=["", "two"]), "{path}:2: step 1 is '', expected text"),
    "a null step": (second(steps=["one", None]), "step 2 is None, expected text"),
    "a step that is a list": (second(steps=[["one"], "two"]), "step 1 is ['one'], expected text"),
    "fewer labels than steps": (second(step_labels=[1]), "holds 1 labels, expected one for each"),
    "more labels than steps": (second(step_labels=[1, 1, 1]), "holds 3 labels, expected one"),
    "labels that are no list": (second(step_labels=0.5), "step_labels holds float"),
    "NaN": (second(step_labels=[float("nan"), 1]), "{path}:2: the label of step 1 is nan"),
    "infinity": (second(step_labels=[1, float("inf")]), "the label of step 2 is inf"),
    "a label above 1": (second(step_labels=[1, 1.01]), "{path}:2: the label of step 2 is 1.01"),
    "a label below 0": (second(step_labels=[-1, 1]), "the label of step 1 is -1"),
    "a boolean label": (second(step_labels=[True, 1]), "the label of step 1 is True"),
    "a label in quotes": (second(step_labels=["1", 1]), "the label of step 1 is '1'"),
    "an outcome of 1": (second(outcome=1), "outcome is 1, expected true or false"),
    "an outcome in quotes": (second(outcome="true"), "outcome is 'true', expected true or false"),
    "an answer that is a number": (second(answer=3), "answer is 3, expected text"),
    "images in one text": (second(images="x.png"), "images is 'x.png', expected a list of paths"),
    "an empty image path": (second(images=[""]), "images is [''], expected a list of paths"),
    "a missing image": (second(images=["x.png"]), "{path}:2: there is no image"),
    "an image that is a folder": (image("x.png"), "{path}:2"),
    "an absolute image path": (second(images=["/etc/passwd"]), "{path}:2: image '/etc/passwd' is"),
    "an image path that climbs out": (second(images=["a/../../x.png"]), "is outside the folder"),
    "a link that leads out": (link("/etc/passwd"), "image 'link.png' is outside the folder"),
    "links in a circle": (link("link.png"), "{path}:2: "),
    "a NUL in an image path": (second(images=["a\0.png"]), "x00.png' cannot be looked up"),
    "an image path too long": (second(images=["a" * 5000]), "looked up: File name too long"),
    "Latin-1 in UTF-8": (
        line('{"id": "é"}'.encode("latin-1")),
        "{path}:2: not UTF-8 text: byte 0xe9 at position 8",
    ),
    "Latin-1 in an array": (raw('["é"]'.encode("latin-1"), "x.json"), "is not UTF-8 text"),
    "UTF-16": (raw(text(ROW).decode().encode("utf-16")), "{path} is UTF-16 text, expected UTF-8"),
    "UTF-16 in an array": (raw("[]".encode("utf-16"), "x.json"), "is UTF-16 text"),
    "NUL bytes": (line(b'{"id": "b\0"}'), "{path}:2: holds a NUL byte"),
    "an empty file": (raw(b""), "holds no rows"),
    "an empty array": (raw(b"[]", "x.json"), "holds no rows"),
    "an empty .json": (raw(b"", "x.json"), "holds no rows"),
    "white space alone": (raw(b" \n\n\t\n"), "holds no rows"),
    "a folder": (folder_named("x.jsonl"), "{path} is a folder, expected a file"),
    "no file": (lambda folder: folder / "x.jsonl", "there is no file {path}"),
    "a link to itself": (linked_file, "cannot read {path}: Too many levels of symbolic links"),
    "another extension": (raw(text(ROW), "x.csv"), "{path} ends in '.csv', expected .jsonl"),
    "gzip named .jsonl": (raw(gzip.compress(text(ROW))), "{path} is compressed by gzip"),
    "Parquet named .jsonl": (raw(b"PAR1" + b"\0" * 20), "{path} is Parquet: name it .parquet"),
    "text named .parquet": (raw(text(ROW), "x.parquet"), "{path}: cannot be read as Parquet"),
    "Parquet cut short": (parquet([ROW], cut=200), "{path}: cannot be read as Parquet"),
    "Parquet of other columns": (parquet([{"prompt": "p"}]), "{path}: row 1: has no 'id'"),
    "Parquet with a date": (
        parquet([ROW | {"seen": date(2024, 2, 29)}]),
        "{path}: row 1: column 'seen' holds date, expected what JSON can hold",
    ),
    "Parquet of a wrong type": (parquet([ROW | {"id": 7}]), "{path}: row 1: id is 7"),
    "a question in the place of a solution": (
        raw(text(ROW) + text(QUESTION)),
        "{path}:2: has candidates, as a question to select from: expected a solution",
    ),
}  # fmt: skip

QUESTIONS: dict[str, tuple[Make, str]] = {
    "a solution in the place of a question": (raw(text(ROW)), "{path}:1: has steps, as a solution"),
    "no candidates": (raw(text({"id": "a", "question": "q"})), "{path}:1: has no 'candidates'"),
    "an empty list": (raw(text(QUESTION | {"candidates": []})), "{path}:1: candidates is empty"),
    "a candidate that is text": (
        raw(text(QUESTION | {"candidates": ["one"]})),
        "{path}:1: a candidate is str, expected an object",
    ),
    "no correct": (
        raw(text(QUESTION | {"candidates": [{"steps": ["one"]}]})),
        "has no 'correct': true or false",
    ),
    "a null correct": (
        raw(text(QUESTION | {"candidates": [{"steps": ["one"], "correct": None}]})),
        "has no 'correct': true or false",
    ),
    "correct in quotes": (
        raw(text(QUESTION | {"candidates": [{"steps": ["one"], "correct": "yes"}]})),
        "correct is 'yes', expected true or false",
    ),
    "a candidate's unknown key": (
        raw(text(QUESTION | {"candidates": [{"steps": ["one"], "corect": True}]})),
        "unknown key 'corect': did you mean 'correct'",
    ),
    "a question's id twice": (raw(text(QUESTION) * 2), "{path}:2"),
}

# What validate alone looks at; the other commands meet it when they read the image.
IMAGES: dict[str, tuple[Make, str]] = {
    "an image cut short": (image("x.png", png((64, 64), cut=900)), "cannot read image"),
    "no image": (image("x.png", b"<svg/>"), "x.png is no image"),
    "an empty image": (image("x.png", b""), "x.png is an empty file"),
    "a decompression bomb": (image("x.png", png((12000, 12000))), "x.png has 12000 x 12000 pixels"),
}

SMALL = [
    *("steps=2", "unroll_steps=1", "device=cpu", "model.backbone=tiny-qwen2"),
    *("model.tiny.width=32", "model.tiny.heads=2", "lower.learning_rate=1e-3"),
    *("lower.batch_size=4", "upper.learning_rate=0.1", "upper.batch_size=4", "baseline=false"),
]


def train(folder: Path, *overrides: str) -> list[str]:
    config = folder / "config.yaml"
    config.write_text("{}\n")
    return ["train", str(config), *SMALL, f"out={folder / 'run'}", *overrides]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    begun = time.monotonic()
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("dreamprm: ")
    assert len(last) < 800
    assert time.monotonic() - begun < 30
    return last


@pytest.mark.parametrize("way", ["validate", "score", "train from disk"])
@pytest.mark.parametrize("name", SOLUTIONS)
def test_wrong_solutions(
    name: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, scores = (tmp_path / n for n in ("data", "run", "scores.jsonl"))
    data.mkdir()
    make, message = SOLUTIONS[name]
    path = make(data)
    model = tmp_path / "model"
    model.mkdir()
    (model / SETTINGS_FILE).write_text("{}")
    arguments = {
        "validate": ["validate", str(path)],
        "score": ["score", str(model), str(path), "--out", str(scores)],
        "train from disk": train(tmp_path, f"data.train=[{path}]", "data.streaming=always"),
    }[way]
    printed = refused(capsys, *arguments)
    assert message.format(path=path) in printed
    assert not scores.exists()
    assert not scores.with_name("scores.jsonl.partial").exists()
    assert not run.exists()
    cache = Path(os.environ["DREAMPRM_CACHE"]) / "index"
    assert not list(cache.glob("partial-*"))


@pytest.mark.parametrize("way", ["validate", "train"])
@pytest.mark.parametrize("name", QUESTIONS)
def test_wrong_questions(
    name: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = QUESTIONS[name]
    path = make(tmp_path)
    good = raw(text(ROW), "good.jsonl")(tmp_path)
    arguments = {
        "validate": ["validate", "--test", str(path)],
        "train": train(tmp_path, f"data.train=[{good}]", f"data.test=[{path}]"),
    }[way]
    assert message.format(path=path) in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", IMAGES)
def test_wrong_images(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = IMAGES[name]
    path = make(tmp_path)
    printed = refused(capsys, "validate", str(path))
    assert printed.startswith(f"dreamprm: {path}:2: ")
    assert message in printed


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder in which this process has no more rights than anybody, even where root runs it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(before)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["the file", "its folder"])
@pytest.mark.parametrize("way", ["validate", "train", "train from disk"])
def test_no_permission(
    way: str,
    what: str,
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = open_folder / "data"
    inner.mkdir()
    path = second()(inner)
    monkeypatch.setenv("DREAMPRM_CACHE", str(open_folder / "cache"))
    arguments = {
        "validate": ["validate", str(path)],
        "train": train(open_folder, f"data.train=[{path}]"),
        "train from disk": train(open_folder, f"data.train=[{path}]", "data.streaming=always"),
    }[way]
    shut = path if what == "the file" else inner
    shut.chmod(0)
    printed = refused(capsys, *arguments)
    shut.chmod(0o700)
    assert f"cannot read {path}: Permission denied" in printed


def rows(folder: Path, name: str, *changes: dict[str, Any]) -> Path:
    lines = [text(ROW | {"id": f"{name}-{n}"} | change) for n, change in enumerate(changes)]
    return raw(b"".join(lines), f"{name}.jsonl")(folder)


def sets(folder: Path) -> dict[str, Path]:
    """Training and meta sets with nothing wrong."""
    return {
        "train": rows(folder, "train", {}, {"domain": "e", "question": "r?"}),
        "meta": rows(
            folder, "meta", *({"question": f"{n}?", "outcome": n % 2 == 0} for n in range(4))
        ),
    }


UNLABELLED: dict[str, Any] = {"step_labels": None}
# What is wrong with a set as a whole: what replaces the good ones, and what the message says.
SETS: dict[str, tuple[str, list[dict[str, Any]], str | None, str]] = {
    "one outcome only": (
        "meta",
        [{"question": f"{n}?", "outcome": True} for n in range(4)],
        "usable solutions of meta are right",
        "all 4 usable solutions of the meta set are right: meta_loss=pairwise",
    ),
    "no outcome": (
        "meta",
        [{"question": "1?"}],
        "meta has no solution with steps and an outcome",
        "none of the 1 solutions of the meta set has steps and an outcome",
    ),
    "no meta steps": (
        "meta",
        [{"question": "1?", "steps": [], "step_labels": [], "outcome": True}],
        "meta has no solution with steps and an outcome",
        "none of the 1 solutions of the meta set has steps and an outcome",
    ),
    "no label and no outcome": (
        "train",
        [UNLABELLED, UNLABELLED | {"domain": "e"}],
        "train has no labelled step and no outcome",
        "none of the 2 training solutions has a labelled step",
    ),
    "no domain": (
        "train",
        [{}, {"domain": None}],
        "train.jsonl:2: has no domain",
        "'train-1' has no domain",
    ),
    "every solution too long": (
        "train",
        [{"steps": ["long " * 3000, "two"]}] * 2,
        None,
        "data.max_tokens",
    ),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name, (_, _, by_validate, _) in SETS.items()
        for way in (*(["validate"] if by_validate else []), "train", "train from disk")
    ],
)
def test_wrong_sets(
    name: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sets(tmp_path)
    role, changes, by_validate, by_train = SETS[name]
    files[role] = rows(tmp_path, role, *changes)
    if way == "validate":
        printed = refused(
            capsys, "validate", "--train", str(files["train"]), "--meta", str(files["meta"])
        )
        assert by_validate
        assert by_validate in printed
        return
    streaming = "always" if way == "train from disk" else "never"
    named = [f"data.{key}=[{path}]" for key, path in files.items()]
    printed = refused(capsys, *train(tmp_path, *named, f"data.streaming={streaming}"))
    assert by_train in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("streaming", ["never", "always"])
def test_a_million_characters_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, streaming: str
) -> None:
    files = sets(tmp_path)
    long = {"steps": ["x7 " * 333_334, "two"]}
    files["train"] = rows(tmp_path, "train", {}, {"question": "r?", "domain": "e"}, long)
    named = [f"data.{key}=[{path}]" for key, path in files.items()]
    begun = time.monotonic()
    assert main(train(tmp_path, *named, f"data.streaming={streaming}")) == 0
    assert time.monotonic() - begun < 60
    assert "data.max_tokens" in caplog.text
    assert "left out" in caplog.text


def test_what_is_remarkable_but_not_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows(
        tmp_path, "x", {}, {}, {"steps": [], "step_labels": []}, {"steps": ["x" * 10**6, "two"]}
    )
    assert main(["validate", "--train", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "warning: train has one domain only, 'd'" in printed
    assert f"warning: question and steps are those of {path}:1\n    at :2" in printed
    assert "warning: has no steps\n    at :3" in printed
    assert "warning: has more than 100000 characters\n    at :4" in printed


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + text(ROW),
        text(ROW).replace(b"\n", b"\r\n"),
        b"\n  \n" + text(ROW) + b"\n\n",
        text(ROW).rstrip(),
        text(ROW | {"question": "größer 😀?"}),
        json.dumps(ROW | {"question": "größer 😀?"}, ensure_ascii=False).encode(),
    ],
    ids=["BOM", "CRLF", "blank lines", "no newline at the end", "escaped emoji", "emoji"],
)
@pytest.mark.parametrize("kind", ["x.jsonl", "x.json"])
def test_what_is_accepted(tmp_path: Path, content: bytes, kind: str) -> None:
    if kind == "x.json":
        bom = content.startswith(b"\xef\xbb\xbf")
        content = b"\xef\xbb\xbf" * bom + b"[" + content.removeprefix(b"\xef\xbb\xbf") + b"]"
    assert main(["validate", str(raw(content, kind)(tmp_path))]) == 0


@pytest.mark.parametrize("command", ["validate", "train"])
def test_a_pattern_that_matches_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = str(tmp_path / "none-*.jsonl")
    arguments = {
        "validate": ["validate", pattern],
        "train": train(tmp_path, f"data.train=['{pattern}']"),
    }
    assert f"no file matches {pattern!r}" in refused(capsys, *arguments[command])


def test_a_file_named_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path, "x", {})
    assert "is named twice" in refused(capsys, "validate", str(path), str(tmp_path / "*.jsonl"))


def test_nothing_to_validate(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to validate" in refused(capsys, "validate")
    assert "did you mean 'canonical'" in refused(capsys, "validate", "x", "--format", "canonicle")
    assert "did you mean 'require'" in refused(capsys, "validate", "x", "--images", "required")


def test_there_are_at_least_forty_kinds() -> None:
    assert len(SOLUTIONS) + len(QUESTIONS) + len(IMAGES) + len(SETS) >= 90
