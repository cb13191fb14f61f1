"""A report and a table in the words of the task, and whether a run says that it has ended."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dreamprm.commands.train import summary_table
from dreamprm.errors import UserError
from dreamprm.reporting import write_comparison, write_report
from dreamprm.reporting.run import read_run
from dreamprm.run_directory.names import FILES
from dreamprm.tasks.prm.words import WORDS
from dreamprm.words import Metric, Words, as_json, union, words_from_json
from tests.report_runs import write_run
from tests.toy import Regression, toy

IMAGES = Words(
    group="annotator",
    sample="image",
    meta="clean images",
    metrics={"accuracy": Metric("accuracy", "share of test images that are classified right")},
    test="test images",
)
OF_REWARD_MODELS = r"domain|solution|PRM|best of N|reward"


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def image_run(folder: Path, finished: bool = True, summary: bool = True) -> Path:
    """A run of a task that is no reward model."""
    folder.mkdir()
    weights = {"ann": 1.4, "bob": 0.6}
    row = {"step": 10, "classifier/loss": 0.4, "classifier/unweighted_loss": 0.5, "hyper/loss": 0.3}
    row |= {f"weights/{name}": weight for name, weight in weights.items()}
    lines(folder / "metrics.jsonl", [row, {"step": 10, "validation/accuracy": 0.8}])
    about = {"words": as_json(IMAGES), "steps": 10, "finished": finished, "step": 10}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "weights.json").write_text(json.dumps(weights))
    (folder / "config.yaml").write_text("steps: 10\nseed: 0\n")
    if summary:
        numbers = {"accuracy": 0.81, "worst_class": 0.42, "note": "x", "is_final": True}
        runs = {"uniform": numbers | {"accuracy": 0.7}, "row_table": numbers}
        (folder / "summary.json").write_text(
            json.dumps({"runs": runs, "weights": weights, "qualities": None})
        )
    return folder


def text_of(page: Path) -> str:
    """What a reader sees, without the config."""
    text = re.sub(r"<style>.*?</style>|<pre class=\"config\">.*?</pre>", "", page.read_text(),
                  flags=re.DOTALL)  # fmt: skip
    labels = re.findall(r'aria-label="([^"]*)"', text)
    return "\n".join([re.sub(r"<[^>]*>", "", text), *labels]).replace("dreamprm", "")


def test_words_survive_the_file_and_what_is_wrong_is_named() -> None:
    assert words_from_json(json.loads(json.dumps(as_json(WORDS))), "run.json") == WORDS
    assert words_from_json({}, "run.json") == Words()
    for wrong, message in (
        ([], r"run.json: words is \[\], expected dict"),
        ({"group": 3}, "run.json: group is 3, expected str"),
        ({"tiles": "ab"}, "run.json: tiles is 'ab', expected list"),
        ({"metrics": {"a": {"title": 1}}}, "run.json: title of 'a' is 1, expected str"),
        ({"against": {"a": [1]}}, "run.json: against 'a' is 1, expected str"),
    ):
        with pytest.raises(UserError, match=message):
            words_from_json(wrong, "run.json")


def test_the_words_of_several_runs_are_neutral_where_they_differ() -> None:
    assert union([IMAGES, IMAGES]).group == "annotator"
    both = union([IMAGES, WORDS])
    assert (both.group, both.sample, both.test) == ("group", "sample", "")
    assert list(both.metrics) == ["accuracy", *WORDS.metrics]


def test_a_report_speaks_the_words_of_its_task(tmp_path: Path) -> None:
    run = image_run(tmp_path / "run")
    text = text_of(write_report(run))
    assert not re.search(OF_REWARD_MODELS, text, re.IGNORECASE)
    for expected in (
        "Annotator weights",
        "2 annotators",
        "On the test images",
        "share of test images that are classified right",
        "worst class",
        "uniform weights 0.700",
        "every annotator counting 1",
        "Upper level: hyper",
        "Lower level: classifier",
        "on the clean images",
        "row table",
        "finished at step 10 of 10",
    ):
        assert expected in text, expected
    assert "is final" not in text  # true is no number
    both = text_of(write_comparison([run, run], tmp_path / "both.html"))
    assert not re.search(OF_REWARD_MODELS, both, re.IGNORECASE)
    assert "worst class" in both
    assert "Annotator weights at the end" in both


def test_a_report_of_reward_models_speaks_theirs(tmp_path: Path) -> None:
    text = text_of(write_report(write_run(tmp_path / "run")))
    for expected in (
        "Domain weights",
        "best of N",
        "learned weights",
        "random pick 0.300",
        "every domain counting 1",
        "the meta loss (pairwise) on the meta set",
        "Outcome AUC: chance that a right solution of the meta set",
    ):
        assert expected in text, expected


def test_a_run_of_a_config_ends_with_its_summary(tmp_path: Path) -> None:
    trained = text_of(write_report(image_run(tmp_path / "trained", summary=False)))
    assert "The training has ended; the summary is not written yet." in trained
    assert "not finished at step 10" in trained
    begun = text_of(write_report(image_run(tmp_path / "begun", finished=False, summary=False)))
    assert "The run has not ended" in begun


def test_a_run_of_an_engine_alone_says_that_it_has_ended(tmp_path: Path) -> None:
    engine = toy(steps=4, run_directory=tmp_path / "run", log_every=2)
    engine.run()
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["steps"], about["finished"], about["step"]) == (4, True, 4)
    assert words_from_json(about["words"], "run.json") == Words()
    text = text_of(write_report(tmp_path / "run"))
    assert "finished at step 4 of 4" in text
    assert "not finished" not in text
    assert "has not ended" not in text
    assert "Group weights" in text
    assert not re.search(OF_REWARD_MODELS, text, re.IGNORECASE)


class Interrupted(Regression):
    """Is told to end in its second step, once."""

    told = False

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.count == 2 and not self.told:
            self.told = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch)


def test_an_interrupted_run_has_not_ended_until_it_is_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        toy(steps=9, run_directory=run, log_every=9, lower=Interrupted).run()
    found = read_run(run)
    assert not found.finished
    assert 0 < found.last_step < 9
    text = text_of(write_report(run))
    assert f"not finished at step {found.last_step} of 9" in text
    assert "The run has not ended" in text
    engine = toy(steps=9, run_directory=run, log_every=9)
    assert engine.resume()
    engine.run()
    assert read_run(run).finished


def test_of_single_rows_both_ends_are_shown_and_the_distribution(tmp_path: Path) -> None:
    run = image_run(tmp_path / "run")
    weights = {f"row-{i:04d}": i / 500 for i in range(1000)}
    (run / "weights.json").write_text(json.dumps(weights))
    names = list(weights)
    lines(
        run / "rows.jsonl",
        [
            {"id": name, "weight": weights[name], "text": f"<b>text of {name}</b> " + "x" * 500}
            for name in names[:20] + names[-20:]
        ],
    )
    page = write_report(run)
    text = text_of(page)
    ids = re.findall(r'<th scope="row">(row-\d+)', page.read_text())
    assert ids == names[:10] + names[-10:] + names[10:20] + names[-20:-10]
    assert "row-0500" not in text
    assert "1,000 images" in text
    assert "Quantiles of the 1,000 weights: 5\xa0%: 0.100, 25\xa0%: 0.499, 50\xa0%: 0.999" in text
    assert "every image counting 1" in text
    assert "x" * 200 not in text
    shares = page.read_text().split('data-key="row-weights"')[1].split("</table>")[0]
    values = [float(v) for v in re.findall(r'<td class="num"><data value="([^"]+)"', shares)]
    assert len(values) == 30
    assert sum(values) == pytest.approx(1, rel=1e-9)
    # A comparison leaves the rows to the runs' own reports.
    assert "row-0500" not in write_comparison([run, run], tmp_path / "both.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", '{"step": "x"}', "run.json: step is 'x', expected int"),
        ("run.json", '{"words": {"group": 1}}', "run.json: group is 1, expected str"),
        ("rows.jsonl", '{"id": "a", "weight": true, "text": ""}\n', "rows.jsonl:1"),
        ("rows.jsonl", '{"id": "a", "weight": 1}\n', "rows.jsonl:1: has no 'text'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    run = image_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(run)


def test_the_printed_table_speaks_the_words_too() -> None:
    runs = {"uniform": {"accuracy": 0.5, "f1": None}, "domain_table": {"accuracy": 0.25, "f1": 1}}
    summary = {"runs": runs, "weights": {"ann": 1.0}, "qualities": None}
    table = summary_table(summary, IMAGES)
    assert "| annotator | learned weight |" in table
    assert "| learned |    0.250 | 1.000 |" in table
    assert "| uniform |    0.500 |     – |" in table
    assert "learned (pairwise)" in summary_table(summary | {"meta_loss": "pairwise"}, WORDS)


def test_a_run_that_is_replaced_takes_these_files_along() -> None:
    assert {"run.json", "rows.jsonl"} <= set(FILES)
