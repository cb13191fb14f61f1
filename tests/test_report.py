"""The report as a file: what it reads, refuses, shows and leaves out."""

from __future__ import annotations

import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dreamprm.cli import main
from dreamprm.data.trajectory import Candidate, SelectionQuestion
from dreamprm.errors import UserError
from dreamprm.evaluation.reading import read_evaluation
from dreamprm.reporting import write_comparison, write_report
from dreamprm.reporting.examples import choose_examples, read_examples, save_examples, small_image
from dreamprm.reporting.plots import thinned
from dreamprm.reporting.repeat import repeat_section
from dreamprm.reporting.run import read_run
from dreamprm.reporting.text import shortened
from tests.report_runs import HOSTILE, HOSTILE_NAMES, evaluation, write_run


def test_the_same_run_gives_the_same_bytes_and_needs_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run, tmp_path / "again.html").read_bytes() == first
    page = first.decode()
    # Nothing is fetched: neither addresses nor scripts; the namespaces of SVG are only names.
    addresses = set(re.findall(r"""[a-z]+://[^\s"'<)]+""", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<script" not in page
    assert "@import" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page):
        assert reference in ids


class Elements(HTMLParser):
    """The names of a page's elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_whatever_names_and_texts_hold_is_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", HOSTILE_NAMES, text=HOSTILE)
    for page in (write_report(run), write_comparison([run, run], tmp_path / "both.html")):
        text = page.read_text()
        assert "&lt;script&gt;window.hit=1&lt;/script&gt;" in text
        elements = Elements()
        elements.feed(text)
        assert elements.names.isdisjoint({"script", "iframe", "object", "embed", "form"})
        assert not any(name.startswith("on") for name in elements.attributes)
        assert not re.search("[\x00-\x08\x1b]", text)


def test_many_domains_and_a_long_run_stay_small(tmp_path: Path) -> None:
    domains = 1000
    run = write_run(tmp_path / "run", [f"domain-{i:04d}" for i in range(domains)], steps=4500)
    start = time.process_time()
    page = write_report(run)
    assert page.stat().st_size < 2e6
    assert time.process_time() - start < 30
    text = page.read_text()
    assert all(f">domain-{i:04d}<" in text for i in (0, 7, domains - 1))
    assert "the 5 highest and the 5 lowest" in text


def test_a_run_without_anything_but_metrics_has_a_report(tmp_path: Path) -> None:
    run = tmp_path / "own"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 10, "classifier/loss": 0.5}\n{"step": 20, "cl')
    text = write_report(run).read_text()
    assert "Lower level: classifier" in text
    assert "not finished" in text
    assert 'id="examples"' not in text  # nothing says that its samples are picked from
    (run / "metrics.jsonl").write_text('{"step": 10, "a/loss": NaN, "validation/x": Infinity}\n')
    text = write_report(run).read_text()
    assert ">not a number<" in text
    assert ">infinite<" in text
    (run / "metrics.jsonl").write_text("")
    assert "Nothing has been logged yet" in write_report(run).read_text()


def test_a_section_without_its_data_says_what_makes_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluated=False)
    (run / "examples.jsonl").unlink()
    text = write_report(run).read_text()
    assert f"dreamprm evaluate {run} --out {run}/evaluation.json" in text
    assert "no scored solutions" in text
    (tmp_path / "other.json").write_text(json.dumps(evaluation(["m"])))
    text = write_report(run, evaluation=tmp_path / "other.json").read_text()
    assert "dreamprm evaluate" not in text
    assert '<data value="0.55">0.550 (0.500\xa0to\xa00.600)</data>' in text


def selected(key: str, value: object = None) -> dict[str, Any]:
    """An evaluation whose one selection has another value there, or none."""
    found = evaluation(["m"])
    found["selection"][0].pop(key)
    found["selection"][0] |= {} if value is None else {key: value}
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "schema is None, expected 'dreamprm-evaluation-1'"),
        ({"schema": "x"}, "schema is 'x', expected 'dreamprm-evaluation-1'"),
        ({"schema": "dreamprm-evaluation-1"}, "has no 'settings'"),
        (evaluation(["m"]) | {"models": 3}, "models is 3, expected list"),
        (evaluation(["m"]) | {"steps": [3]}, "steps 0 is int, expected an object"),
        (selected("n"), "selection 0: has no 'n'"),
        (selected("questions", True), "selection 0: questions is True, expected int"),
        (selected("candidates", [1, "x"]), "selection 0: candidates 1: found 'x' in candidates"),
        (selected("baselines", {"longest": []}), "selection 0 is list, expected an object"),
        (selected("baselines", {"longest": {}}), "selection 0: has no 'accuracy'"),
        (selected("n", [1]), "selection 0: expected 1 accuracies, one for each N"),
    ],
)
def test_what_is_wrong_in_an_evaluation_is_named(
    tmp_path: Path, found: object, message: str
) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=re.escape(f"{path}: {message}")):
        read_evaluation(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"e.json is not JSON: Expecting"):
        read_evaluation(path)
    path.unlink()
    with pytest.raises(UserError, match=r"there is no evaluation .*; dreamprm evaluate --out"):
        read_evaluation(path)


def test_what_was_read_is_written_again_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    for found in (evaluation(["m", "n"]), selected("picks")):
        path.write_text(json.dumps(found))
        assert read_evaluation(path).as_json() == found


def spoil(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\nnonsense\n', "metrics.jsonl:2: not JSON"),
        ("metrics.jsonl", '{"step": 1, "a": "b"}\n', "metrics.jsonl:1: expected an object of num"),
        ("metrics.jsonl", '{"a": 1}\n', "metrics.jsonl:1: has no 'step'"),
        ("summary.json", "[]", "summary.json holds list, expected an object"),
        ("summary.json", '{"runs": 3}', "summary.json: runs is no object"),
        ("weights.json", '{"a": "b"}', "weights.json: the weight of 'a' is 'b'"),
        ("config.yaml", "a: [", "config.yaml is not YAML"),
        ("examples.jsonl", '{"id": "1"}\n', "examples.jsonl:1: has no 'images'"),
        ("evaluation.json", "{}", "evaluation.json: schema is None"),
        ("report.html", "mine", "report.html is there and is no report"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    run = write_run(tmp_path / "run")
    spoil(run, name, text)
    assert main(["report", str(run)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run directory: it has no metrics.jsonl" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "there is no run directory" in capsys.readouterr().err


def test_the_command_writes_a_page_for_each_and_one_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(write_run(Path(folder))) for folder in ("a/run", "b/run")]
    config = Path("b/run/config.yaml")
    config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    assert main(["report", *runs]) == 0
    pages = capsys.readouterr().out.split()
    assert pages == ["a/run/report.html", "b/run/report.html", "a/comparison.html"]
    assert not list(Path().glob("*.html"))
    text = Path("a/comparison.html").read_text()
    # Equal names are told apart by their paths; one key differs.
    assert all(f'scope="col" class="num">{run}</th>' in text for run in runs)
    differing = text[text.index('data-key="differences"') :]
    assert re.findall(r'<th scope="row">(\w+)</th>', differing[: differing.index("</table>")]) == [
        "seed"
    ]


def test_a_comparison_lies_beside_the_first_run_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_run(tmp_path / "runs" / name) for name in ("a", "b")]
    monkeypatch.chdir(runs[0])
    assert write_comparison([".", "../b"]) == tmp_path / "runs" / "comparison.html"
    assert write_comparison([".", "../b"], "here.html") == Path("here.html")


def question(name: str, *candidates: bool) -> SelectionQuestion:
    return SelectionQuestion(name, "?", tuple(Candidate(("s",), None, c) for c in candidates))


def test_examples_are_the_clearest_picks_of_either_kind(tmp_path: Path) -> None:
    questions = [
        question("right by 1", True, False),
        question("right by 3", False, True),
        question("wrong by 2", False, True),
        question("no choice", False, False),
        question("alone and right", True),
    ]
    logits: list[list[list[float]]] = [
        [[1.0], [0.0]],
        [[-1.0], [2.0]],
        [[2.0], [0.0]],
        [[5.0], [-5.0]],
        [[0.5]],
    ]
    chosen = choose_examples(questions, logits)
    assert [e.id for e in chosen] == ["right by 3", "right by 1", "alone and right", "wrong by 2"]
    assert chosen[0].best.scores == [pytest.approx(1 / (1 + math.exp(-2.0)), rel=1e-12)]
    assert chosen[0].worst is not None
    assert not chosen[0].worst.correct
    assert chosen[2].worst is None
    assert [e.id for e in choose_examples(questions, logits, 1)] == ["right by 3", "wrong by 2"]
    save_examples(tmp_path / "e.jsonl", chosen)
    assert read_examples(tmp_path / "e.jsonl") == chosen
    save_examples(tmp_path / "none.jsonl", [])
    assert read_examples(tmp_path / "none.jsonl") == []


def test_long_solutions_are_cut_and_say_so() -> None:
    steps = tuple(["word " * 400] * 50)
    found = choose_examples(
        [SelectionQuestion("q", "x" * 5000, (Candidate(steps, None, True),))], [[[1.0] * 50]]
    )[0]
    assert found.best.steps_left_out == 10
    assert len(found.best.steps) == len(found.best.scores) == 40
    assert found.best.steps[0].endswith("(1,200 more characters)")
    assert len(found.question) < 1600


def test_images_are_small(tmp_path: Path) -> None:
    from PIL import Image

    for mode, size in (("RGBA", (2000, 500)), ("P", (30, 30)), ("L", (400, 2000))):
        Image.new(mode, size).save(tmp_path / "image.png")
        url = small_image(tmp_path / "image.png")
        assert re.match(r"data:image/(png|jpeg);base64,[\w+/=]+$", url)
        assert len(url) < 40_000


def test_thinning_keeps_the_ends() -> None:
    assert thinned(5, 10) == [0, 1, 2, 3, 4]
    for count in (300, 301, 12_345):
        kept = thinned(count, 300)
        assert len(set(kept)) == 300
        assert (kept[0], kept[-1]) == (0, count - 1)
    assert shortened("a" * 50, 26) == "a" * 12 + "…" + "a" * 13


def test_the_commands_to_repeat_a_run_can_be_pasted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run; rm -rf")
    commands: list[Any] = repeat_section(read_run(run)).commands
    assert commands[0] == "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"
    assert commands[1] == "pip install torch==2.13.0"
    assert commands[2].startswith(f"dreamprm train '{run}/config.yaml' --out ")
