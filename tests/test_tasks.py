"""What docs/tasks.md prints runs as printed: a task, a weighting and a method from outside."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamprm import load_config, train
from dreamprm.errors import UserError
from dreamprm.hypergradients import METHODS
from dreamprm.tasks import Columns
from dreamprm.tasks.reweighting import digest
from tests.small_demo import SMALL_DEMO

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tasks.md"
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in BLOCK.findall(PAGE.read_text()):
        (tmp_path / name).write_text(f"# {name}\n{text}")
    return tmp_path


def dreamprm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dreamprm.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_task_is_as_short_as_the_page_says(folder: Path) -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()}
    assert lines["my_task.py"] <= 40
    assert lines["my.yaml"] <= 15


def test_a_task_outside_the_package_runs_is_killed_and_resumes(folder: Path) -> None:
    whole = dreamprm(folder, "train", "my.yaml", "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "error" in whole.stdout
    process = subprocess.Popen(
        [sys.executable, "-m", "dreamprm.cli", "train", "my.yaml"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    out = folder / "runs" / "mine"
    while not list(out.glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = dreamprm(folder, "train", "my.yaml", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    summaries = [
        json.loads((each / "summary.json").read_text()) for each in (folder / "whole", out)
    ]
    for summary in summaries:
        summary.pop("config")
    assert summaries[0] == summaries[1]
    weights = summaries[0]["weights"]
    assert max(weights, key=weights.__getitem__) != "3"
    assert weights["3"] == min(weights.values()) < 0.2
    assert summaries[0]["runs"]["domain_table"]["error"] < summaries[0]["runs"]["uniform"]["error"]
    report = (out / "report.html").read_text()
    assert "squared error" in report
    assert "has not ended" not in report
    again = dreamprm(folder, "train", "my.yaml")
    assert again.returncode == 2
    assert "--resume continues it" in again.stderr
    changed = dreamprm(folder, "train", "my.yaml", "--resume", "points=500")
    assert changed.returncode == 2
    assert "differs from this config in points" in changed.stderr


def test_other_data_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = load_config("my.yaml", ["steps=20", "baseline=false"])
    train(config)
    source = folder / "my_task.py"
    source.write_text(source.read_text().replace("[1.0, -2.0, 0.5]", "[1.0, -2.0, 0.6]"))
    changed = dreamprm(folder, "train", "my.yaml", "steps=20", "baseline=false", "--resume")
    assert changed.returncode == 2
    assert "other training data, meta set" in changed.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["plugins=[my_weighting.py]", "weighting=temperature"],
        ["plugins=[my_method.py]", "hypergradient=damped", "hypergradient_options.damping=2"],
        ["plugins=[my_solver.py]", "hypergradient=descent", "hypergradient_options.step=0.05"],
        ["weighting=instance_table"],
        ["weighting=instance_network", "weighting_options.features=[x]"],
    ],
)
def test_weightings_and_methods_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(folder)
    summary = train(load_config("my.yaml", ["steps=20", *words]))
    plain, learned = summary["runs"].values()
    assert learned["error"] != plain["error"]


def test_learned_weights_are_fixed_in_another_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    short = ["steps=100", "baseline=false"]
    for name in ("domain_table", "instance_table"):
        learned = train(load_config("my.yaml", [*short, f"weighting={name}", f"out={name}"]))
        column = ["weighting_options.column=id"] if name == "instance_table" else []
        options = [f"weighting_options.file={name}", *column]
        fixed = train(
            load_config("my.yaml", [*short, "weighting=fixed", *options, f"out=fixed-{name}"])
        )
        assert fixed["weights"] == pytest.approx(learned["weights"])
        assert fixed["runs"]["fixed"] != learned["runs"][name]
    with pytest.raises(UserError, match="no weight for sensor '0' and 3 more"):
        train(load_config("my.yaml", [*short, "weighting=fixed", "weighting_options.weights={a: 1}",
                                      "out=wrong"]))  # fmt: skip


def test_every_row_has_its_weight_in_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    train(load_config("my.yaml", ["weighting=instance_table", "baseline=false"]))
    weights = json.loads(Path("runs/mine/weights.json").read_text())
    assert list(weights) == [str(i) for i in range(400)]
    wrong = [weight for name, weight in weights.items() if int(name) % 4 == 3]
    right = [weight for name, weight in weights.items() if int(name) % 4 != 3]
    assert sum(wrong) / len(wrong) < sum(right) / len(right)
    ends = [json.loads(line) for line in Path("runs/mine/rows.jsonl").read_text().splitlines()]
    assert [row["weight"] for row in ends] == sorted(row["weight"] for row in ends)
    assert ends[0]["weight"] == min(weights.values())
    assert "sensor" in ends[0]["text"]


def test_parts_of_a_plugin_are_known_to_every_command(folder: Path) -> None:
    rows = [
        {"name": f"{i}", "task": "1 + 1?", "lines": ["one", f"so {i}"], "good": i % 2 == 0}
        for i in range(4)
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = ["--plugin", "my_parts.py"]
    to = ["--to", "canonical", "--out", "solutions.jsonl"]
    assert dreamprm(folder, *parts, "convert", "mine.jsonl", *to).returncode == 0
    assert len((folder / "solutions.jsonl").read_text().splitlines()) == 4
    words = ["plugins=[my_parts.py]", "meta_loss=margin", "meta_loss_options.width=2"]
    words += ["step_loss=absolute", "model.readout=deep", "steps=10", "baseline=false"]
    trained = dreamprm(folder, "train", "demo", *SMALL_DEMO, *words, "out=run")
    assert trained.returncode == 0, trained.stderr
    scored = dreamprm(folder, *parts, "score", "run", "solutions.jsonl", "--out", "scores.jsonl")
    assert scored.returncode == 0, scored.stderr
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [len(row["scores"]) for row in scores] == [2] * 4
    without = dreamprm(folder, "score", "run", "solutions.jsonl")
    assert without.returncode == 2
    assert "deep" in without.stderr


def test_methods_are_measured_on_a_task_of_ones_own(folder: Path) -> None:
    words = ["hypergradients", "my.yaml", "plugins=[my_method.py]", "--json"]
    words += ["t1t2", "cg", "damped", "iterations=2", "damping=0.5", "lower.batch_size=16"]
    done = dreamprm(folder, *words)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"t1t2", "cg", "damped"}
    assert rows["cg"]["options"]["iterations"] == 2
    assert rows["damped"]["options"] == {"damping": 0.5}
    for row in rows.values():
        assert set(row["error"]) == {"ridge", "logistic", "my, fp32", "my, bf16"}
        assert row["error"]["my, fp32"] < 1e-4
    assert 1e-4 < rows["t1t2"]["error"]["my, bf16"] < 0.1
    refused = dreamprm(folder, "hypergradients", "my.yaml", "t1t2", "lower.batch=16")
    assert refused.returncode == 2
    assert "lower.batch_size" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=none.py"], "there is no file"),
        (["task=noisy_label"], "did you mean 'noisy_labels'"),
        (["hypergradient=identiy"], "did you mean 'identity'"),
        (["weighting=instance"], "did you mean 'instance_table'"),
        (["weighting_options.colum=x"], "did you mean 'column'"),
        (["plugins=[my.yaml.py]"], "there is no file"),
        (["points=few"], "points"),
    ],
)
def test_bad_words_are_refused_before_anything_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=re.escape(message)):
        load_config("my.yaml", words)


def test_a_task_that_cannot_be_imported_says_where(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\n\nraise KeyError('x')\n")
    (tmp_path / "broken.yaml").write_text("task: broken.py\n")
    with pytest.raises(UserError, match=r"broken\.py:3: KeyError"):
        load_config(str(tmp_path / "broken.yaml"))
    (tmp_path / "broken.py").write_text("def build(\n")
    with pytest.raises(UserError, match=r"broken\.py:1: SyntaxError"):
        load_config(str(tmp_path / "broken.yaml"))


def test_batches_of_every_task_have_the_index_of_their_rows() -> None:
    from dreamprm.data.batches import BatchStream

    rows = Columns({"x": [10 * i for i in range(7)]})
    stream = BatchStream(rows, 3, lambda items: {"x": [item["x"] for item in items]}, seed=0)
    batch = next(iter(stream))
    assert [10 * i for i in batch["index"].tolist()] == batch["x"]


def test_a_config_made_in_python_is_checked_too(tmp_path: Path) -> None:
    from dreamprm.tasks.noisy_labels import Config

    config = Config(task="noisy_labels", steps=20, out=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"gives no value for lower\.batch_size, lower\.learning"):
        train(config)
    assert not (tmp_path / "run").exists()
    config.lower.learning_rate = config.upper.learning_rate = 0.01
    config.lower.batch_size = config.upper.batch_size = 32
    summary = train(config)
    assert set(summary["runs"]) == {"uniform", "domain_table"}
    assert 0 < summary["runs"]["uniform"]["accuracy"] < 1


@pytest.mark.parametrize("method", [*METHODS, "neumann+finite_difference"])
def test_a_table_of_rows_goes_with_every_method(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(folder)
    words = [f"hypergradient={method}", "weighting=instance_table", "baseline=false"]
    words += ["hypergradient_options.rank=2"] * (method == "nystrom")  # the line has 4 variables
    train(load_config("my.yaml", ["steps=2", *words]))
    weights = json.loads(Path("runs/mine/weights.json").read_text())
    assert len({round(weight, 6) for weight in weights.values()}) > 2


def test_digests_see_what_printing_leaves_out() -> None:
    long = np.zeros(5000)
    changed = long.copy()
    changed[2500] = 1
    assert repr(long) == repr(changed)
    pairs = [
        ([{"x": long}], [{"x": changed}]),
        ([{"x": [torch.from_numpy(long)]}], [{"x": [torch.from_numpy(changed)]}]),
        ([{"x": {1, 2}}], [{"x": {1, 3}}]),
        ([{"x": [1, 2], "y": 3}], [{"x": [1], "y": [2, 3]}]),
    ]
    for before, after in pairs:
        assert digest(before) != digest(after)
        assert digest(before) == digest(list(before))
    assert digest(Columns({"x": torch.zeros(3)})) != digest(Columns({"x": torch.zeros(3).half()}))


def test_early_stopping_needs_a_metric(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"needs early_stopping\.metric"):
        load_config("my.yaml", ["early_stopping.patience=1"])
