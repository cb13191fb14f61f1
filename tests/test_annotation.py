"""``dreamprm annotate`` with a local model: labels, searches, interruptions, refusals."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreamprm import load_trajectories
from dreamprm.annotation import annotate as annotating
from dreamprm.annotation.config import load_annotation_config
from dreamprm.annotation.cost import estimate, prefixes_of
from dreamprm.annotation.local import LocalGenerator, _OwnSeeds
from dreamprm.annotation.prompt import cut
from dreamprm.annotation.questions import load_answered_questions
from dreamprm.annotation.search import SEARCHES, Labels
from dreamprm.cli import main
from dreamprm.config.reading import shipped_configs
from dreamprm.journal import Journal
from tests.generator import INSTRUCTIONS, save_generator, write_questions
from tests.shared import needs_shared

SMALL = [f"instructions={INSTRUCTIONS}", "chains=2", "completions=3", "max_new_tokens=30"]
SMALL += ["temperature=1.0", "local.batch_size=4", "local.device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator, questions, and their annotation that nobody interrupted."""
    folder = tmp_path_factory.mktemp("annotation")
    save_generator(folder / "generator")
    write_questions(folder / "questions.jsonl")
    assert annotate(folder, folder / "whole.jsonl") == 0
    return folder


def annotate(folder: Path, out: Path, *options: str) -> int:
    files = [f"questions={folder / 'questions.jsonl'}", f"local.model={folder / 'generator'}"]
    return main(["annotate", "annotate", *files, "--out", str(out), *SMALL, *options])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Interruption:
    """Calls ``what`` at the given one of the events: tokens, journal lines (torn), replacements."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, event: int, what: Callable[[], None]
    ) -> None:
        self.left = event
        self.what = what
        draw, add, replace = _OwnSeeds.__call__, Journal.add, os.replace

        def drawing(*arguments: Any) -> Any:
            self.happens()
            return draw(*arguments)

        def adding(journal: Journal, *pieces: Any) -> None:
            self.happens()
            add(journal, *pieces)
            if self.left == 1:  # as where a kill tears the next line
                assert journal._file is not None
                journal._file.write(b'{"key": ["gsm8k-0000", 0')
                journal._file.flush()
            self.happens()

        def replacing(*arguments: Any) -> None:
            self.happens()
            replace(*arguments)
            self.happens()

        monkeypatch.setattr(_OwnSeeds, "__call__", drawing)
        monkeypatch.setattr(Journal, "add", adding)
        monkeypatch.setattr(os, "replace", replacing)

    def happens(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.what()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted(folder: Path, out: Path, event: int, kill: bool) -> None:
    """Annotates in another process, which is killed or interrupted at an event."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # a fork inherits no threads to share work with
        with pytest.MonkeyPatch.context() as monkeypatch:
            Interruption(monkeypatch, event, kill_self if kill else interrupt)
            os._exit(annotate(folder, out, "--resume"))
    _, status = os.waitpid(process, 0)
    expected = signal.SIGKILL if kill else 130
    found = os.WTERMSIG(status) if kill else os.waitstatus_to_exitcode(status)
    assert found == expected, f"ended before event {event}"


@needs_shared
def test_interrupted_twenty_times_it_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    out = tmp_path / "out.jsonl"
    partial = Path(f"{out}.partial")
    progress = []
    for number in range(20):
        interrupted(folder, out, rng.randint(1, 60), kill=number % 2 == 0)
        progress.append(partial.read_bytes().count(b"\n") if partial.exists() else 0)
        assert not out.exists()
    assert progress == sorted(progress)
    assert len(set(progress)) > 10
    assert annotate(folder, out, "--resume") == 0
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    counts = out.with_suffix(".counts.jsonl")
    assert counts.read_bytes() == (folder / "whole.counts.jsonl").read_bytes()
    origin = f"{out.name}.origin"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, counts.name, origin}


@needs_shared
@pytest.mark.parametrize("event", [1, 2, 3, 4])
def test_interrupted_while_it_writes_the_output(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: int
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        # Of the events, the four replacements' alone: counts and labels, before and after.
        patch.setattr(annotating, "write_whole", writing(patch, event))
        assert annotate(folder, out) == 130
    assert out.exists() == (event == 4)
    asked = []
    monkeypatch.setattr(LocalGenerator, "_generate", lambda *_: asked.append(1))
    assert annotate(folder, out, "--resume") == 0
    assert not asked
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def writing(patch: pytest.MonkeyPatch, event: int) -> Callable[..., None]:
    write = annotating.write_whole
    began = []

    def begins(*arguments: Any) -> None:
        if not began:
            began.append(Interruption(patch, event, interrupt))
        write(*arguments)

    return begins


@needs_shared
def test_the_labels_are_the_shares_of_right_completions(folder: Path) -> None:
    rows = load_trajectories(folder / "whole.jsonl")
    answers = {row["id"]: row["answer"] for row in lines(folder / "questions.jsonl")}
    counts = {row["id"]: row["prefixes"] for row in lines(folder / "whole.counts.jsonl")}
    assert [row.id for row in rows] == [f"{name}/{n}" for name in answers for n in range(2)]
    labels: list[float] = []
    for row in rows:
        right = answers[row.id.rpartition("/")[0]]
        assert row.outcome == (row.answer is not None and row.answer.rstrip(".") == right)
        assert row.step_labels is not None
        known = len(row.steps) - (row.answer is not None)
        assert [prefix["steps"] for prefix in counts[row.id]] == list(range(1, known + 1))
        for prefix, label in zip(counts[row.id], row.step_labels, strict=False):
            ended = [a for a in prefix["answers"] if a is not None and a.rstrip(".") == right]
            assert (prefix["right"], prefix["total"]) == (len(ended), 3)
            assert label == len(ended) / 3
            labels.append(label)
        if row.answer is not None:
            assert row.step_labels[-1] == float(row.outcome)
    assert {0.0, 1.0} < set(labels)  # some are between
    assert {row.outcome for row in rows} == {True, False}


@needs_shared
def test_texts_depend_on_their_seeds_and_not_on_batches(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "whole.jsonl").read_bytes()
    exact = "local.dtype=float64"  # else a sum that rounds otherwise could turn a token
    for size in (3, 16):
        assert annotate(folder, tmp_path / f"{size}.jsonl", f"local.batch_size={size}", exact) == 0
    found = {(tmp_path / f"{size}.jsonl").read_bytes() for size in (3, 16)}
    assert len(found) == 1
    assert annotate(folder, tmp_path / "seed.jsonl", "seed=1") == 0
    assert (tmp_path / "seed.jsonl").read_bytes() != whole
    assert annotate(folder, tmp_path / "greedy.jsonl", "temperature=0") == 0
    rows = load_trajectories(tmp_path / "greedy.jsonl")
    assert all(a.steps == b.steps for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_a_draw_has_the_distribution_of_the_logits() -> None:
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).repeat(4000, 1)
    draw = _OwnSeeds(range(4000), 1)
    found = draw(torch.zeros(4000, 1), scores).argmax(-1).bincount(minlength=4) / 4000
    expected = scores[0].softmax(-1)
    # Four standard deviations of a share of 4000.
    assert (found - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5
    assert found[2] == 0


@needs_shared
def test_first_error_spends_less_and_agrees_where_it_looked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert annotate(folder, out, "search=first_error") == 0
    for whole, row in zip(
        load_trajectories(folder / "whole.jsonl"), load_trajectories(out), strict=True
    ):
        assert (whole.steps, whole.outcome) == (row.steps, row.outcome)
        assert whole.step_labels is not None
        assert row.step_labels is not None
        if row.outcome:
            assert set(row.step_labels) == {1.0}
        pairs = zip(whole.step_labels, row.step_labels, strict=True)
        assert all(b in (None, 0.0, 1.0, a) for a, b in pairs)

    def texts(path: Path) -> int:
        rows = lines(path.with_suffix(".counts.jsonl"))
        return sum(prefix["total"] for row in rows for prefix in row["prefixes"])

    assert 0 < texts(out) < texts(folder / "whole.jsonl")


def searched(search: str, steps: int, outcome: bool | None, first_wrong: int) -> tuple[Labels, int]:
    """Runs a search on a solution of which the first wrong step is known."""
    course = SEARCHES[search](steps, outcome)
    looked = 0
    try:
        asked = next(course)
        while True:
            looked += len(asked)
            asked = course.send({i: (3 if i < first_wrong else 0, 4) for i in asked})
    except StopIteration as end:
        return end.value, looked


@pytest.mark.parametrize("steps", range(1, 21))
def test_halving_finds_every_first_wrong_step(steps: int) -> None:
    for wrong in range(1, steps + 1):
        labels, looked = searched("first_error", steps, False, wrong)
        assert looked <= prefixes_of("first_error", steps)
        assert labels.labels[wrong - 1 :] == [0.0] * (steps - wrong + 1)
        assert all(label in (None, 0.75) for label in labels.labels[: wrong - 1])
        if wrong > 1:
            assert labels.labels[wrong - 2] == 0.75  # what the search ended on
        every, looked = searched("all", steps, False, wrong)
        assert looked == prefixes_of("all", steps)
        right = 0.75
        assert every.labels == [right] * (wrong - 1) + [0.0] * (steps - wrong + 1)
    # A solution that came to no answer: its last prefix is one like the others.
    assert searched("first_error", steps, None, steps + 1)[0].labels[-1] == 0.75
    assert searched("all", steps, None, steps + 1)[0].labels == [0.75] * steps
    assert searched("first_error", steps, True, 0) == (Labels([1.0] * steps, {}), 0)


def test_prefixes_join_to_the_solution() -> None:
    text = "Let us see.\n\nStep 1: a\n\nStep 2: b\n b\nStep 3: a\nFinal answer: 3\n"
    steps, prefixes = cut(text)
    assert len(steps) == len(prefixes) == 4
    assert prefixes[-1] == text
    assert prefixes[0] == "Let us see.\n\n"
    assert prefixes[2].endswith("b\n b\n")
    assert cut("") == ([], [])


@pytest.mark.parametrize("backbone", ["tiny-qwen2-vl", "tiny-internvl", "tiny-idefics3"])
def test_a_model_that_reads_images(tmp_path: Path, backbone: str) -> None:
    (tmp_path / "img").mkdir()
    for number in range(2):
        Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / f"img/{number}.png")
    rows = [
        {"id": str(n), "question": "Which?", "answer": "B", "options": ["red", "blue"]}
        | ({"images": [f"img/{n}.png"]} if n < 2 else {})
        for n in range(3)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["chains=2", "completions=2", "max_new_tokens=4", f"local.model={backbone}"]
    small += ["local.tiny.width=32", "local.tiny.layers=1", "local.tiny.heads=2", "temperature=1"]
    small += ["local.tiny.vocabulary=400", "local.tiny.max_pixels=3136", "local.dtype=float64"]
    files = [
        f"questions={tmp_path / 'q.jsonl'}",
        "local.device=cpu",
        f"instructions={INSTRUCTIONS}",
    ]
    for size in (1, 8):
        out = f"out={tmp_path / f'out{size}.jsonl'}"
        command = ["annotate", "annotate", *files, *small, f"local.batch_size={size}", out]
        assert main(command) == 0
    found = load_trajectories(tmp_path / "out8.jsonl")
    assert found == load_trajectories(tmp_path / "out1.jsonl")
    assert found[0].question == "Which?\n(A) red\n(B) blue"
    assert [len(row.images) for row in found] == [1, 1, 1, 1, 0, 0]


@needs_shared
def test_what_is_there_is_not_lost(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"

    def refused(*options: str) -> str:
        assert annotate(folder, out, *options) == 2
        return capsys.readouterr().err

    interrupted(folder, out, 60, kill=True)
    partial = Path(f"{out}.partial")
    begun = partial.read_bytes()
    assert "--resume continues it" in refused()
    assert "and this command differ in temperature:" in refused("--resume", "temperature=0.5")
    changed = refused("--resume", "chains=3", "completions=2", "search=first_error")
    assert "and this command differ in chains, completions, search:" in changed
    assert "differ in grading.rules:" in refused("--resume", "grading.rules={gsm8k: string}")
    changed = refused("--resume", "generator=openai", "openai.model=x", URL)
    assert re.search(r"and this command differ in .*\bgenerator\b", changed)
    other = tmp_path / "questions.jsonl"
    other.write_text(
        (folder / "questions.jsonl").read_text().replace('"answer": "18"', '"answer": "1"')
    )
    assert "differ in questions:" in refused("--resume", f"questions={other}")
    assert partial.read_bytes() == begun
    # What changes no result may change.
    assert annotate(folder, out, "--resume", "local.batch_size=5") == 0
    assert "is there already: --overwrite" in refused()
    written = out.stat().st_mtime_ns
    assert annotate(folder, out, "--resume") == 0
    assert out.stat().st_mtime_ns == written
    assert "and this command differ in chains" in refused("--resume", "chains=1")
    assert annotate(folder, out, "--overwrite", "chains=1") == 0
    assert len(lines(out)) == 3


URL = "openai.base_url=http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["chain=3"], "did you mean 'chains'?"),
        (["local.modle=x"], "did you mean 'local.model'?"),
        (["chains=0"], "chains is 0, expected at least 1"),
        (["completions=0"], "completions is 0, expected at least 1"),
        (["temperature=-1"], "temperature is -1"),
        (["top_p=0"], "top_p is 0"),
        (["top_p=1.5"], "top_p is 1.5, expected at most 1"),
        (["search=fist_error"], "did you mean 'first_error'?"),
        (["grading.rule=maths"], "did you mean 'math'?"),
        (["grading.rules={a: nubmer}"], "grading.rules.a"),
        (["generator=opneai"], "did you mean 'openai'?"),
        (["generator=openai"], "gives no value for openai.model"),
        (["out=x.txt"], "expected a name that ends in .jsonl"),
        (["local.model=tiny-qwen9"], "unknown tiny backbone"),
        (["local.model=/nowhere/at/all"], "cannot load a model from"),
        (["questions=nowhere.jsonl"], "there is no file nowhere.jsonl"),
    ],
)
def test_a_wrong_config_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": "2 + 2?", "answer": "4"}\n')
    given = [f"questions={tmp_path / 'q.jsonl'}", f"out={tmp_path / 'o.jsonl'}"]
    assert main(["annotate", "annotate", *given, "local.model=tiny-qwen2", *options]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "q.jsonl holds no rows"),
        ('{"id": "1", "question": "?"}', "q.jsonl:1: has no 'answer'"),
        ('{"id": "1", "question": "?", "answer": ""}', "q.jsonl:1: answer is ''"),
        ('{"id": "1", "question": "?", "answer": null}', "q.jsonl:1: answer is None"),
        ('{"id": "1", "question": "?", "answer": 4}', "q.jsonl:1: answer is 4, expected text"),
        ('{"id": "1", "question": "", "answer": "4"}', "q.jsonl:1: question is ''"),
        ('{"id": "1", "question": "?", "answer": "4", "option": []}', "did you mean 'options'?"),
        ('{"id": "1", "question": "?", "answer": "4", "steps": []}', "unknown key 'steps'"),
        ('{"id": "1", "question": "?", "answer": "4", "options": [1]}', "options is [1]"),
        (
            json.dumps({"id": "1", "question": "?", "answer": "A", "options": list("abcdefghijk")}),
            "there are 11 options, expected at most 10",
        ),
        ('{"id": "1", "question": "?", "answer": "4", "images": ["../x.png"]}', "outside"),
        ('{"id": "1", "question": "?", "answer": "4", "images": ["x.png"]}', "there is no image"),
        ('{"id": "1", "question": "?", "answer": "4"}\n' * 2, "q.jsonl:2: id '1' stands at"),
        ('{"id": "1"', "q.jsonl:1: not JSON"),
    ],
)
def test_wrong_questions_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    given = [f"questions={tmp_path / 'q.jsonl'}", f"out={tmp_path / 'o.jsonl'}"]
    assert main(["annotate", "annotate", *given, "local.model=tiny-qwen2"]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl"}


def test_images_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "x.png")
    row = {"id": "1", "question": "?", "answer": "4", "images": ["x.png"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    command = [
        "annotate",
        "annotate",
        f"questions={tmp_path / 'q.jsonl'}",
        "local.model=tiny-qwen2",
    ]
    assert main([*command, f"out={tmp_path / 'o.jsonl'}"]) == 2
    assert "question '1' has images, but tiny-qwen2 reads text only" in capsys.readouterr().err
    assert main([*command, f"out={tmp_path / 'below' / 'o.jsonl'}"]) == 2
    assert "the folder of out" in capsys.readouterr().err


def test_the_estimate_comes_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": "2 + 2?", "answer": "4"}\n')
    given = [f"questions={tmp_path / 'q.jsonl'}", f"out={tmp_path / 'o.jsonl'}", "generator=openai"]
    given += ["openai.model=x", "openai.prices.prompt=2", "openai.prices.completion=8"]
    assert main(["annotate", "annotate", *given, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    # 4 solutions, each with 4 prefixes of 8 completions.
    assert "132 requests for 132 texts" in printed
    assert "in money" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl"}
    config = load_annotation_config("annotate", [*given, "instructions=" + 380 * "x"])
    questions = load_answered_questions(tmp_path / "q.jsonl")
    cost = estimate(config, questions)
    prompt = (380 + len("\n\nProblem:\n2 + 2?")) / 4
    assert cost.prompt_tokens == round(4 * (prompt + 32 * (prompt + 150)))
    assert cost.completion_tokens == 4 * (300 + 32 * 150)
    assert cost.money(config.openai.prices) == pytest.approx(
        (2 * cost.prompt_tokens + 8 * cost.completion_tokens) / 1e6
    )
    shared = load_annotation_config("annotate", [*given, "openai.samples_per_request=3"])
    assert estimate(shared, questions).requests == 4 * (1 + 4 * 3)
    assert estimate(shared, questions).samples == 132


def test_the_shipped_config_is_valid() -> None:
    assert "annotate" in shipped_configs()
    assert load_annotation_config("annotate", ["local.model=x"]).out == "runs/annotate.jsonl"
