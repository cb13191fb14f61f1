"""The command line as a user meets it: runs, resumes, refusals with exit status 2."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm import ProcessRewardModel, load_trajectories
from dreamprm.cli import main
from dreamprm.config.reading import shipped_configs, shipped_runs
from dreamprm.data.synthetic import draw_synthetic
from dreamprm.hypergradients import METHODS
from dreamprm.run_directory.checkpoints import checkpoint_steps
from dreamprm.run_directory.metrics import read_metrics
from dreamprm.tasks.modules import load_config
from tests.shared import SHARED, needs_shared
from tests.small_demo import SMALL_DEMO

SMALL = [
    "steps=8",
    "unroll_steps=2",
    "log_every=2",
    "validate_every=4",
    "checkpoint_every=3",
    *SMALL_DEMO,
]


def run_demo(out: Path, *options: str) -> dict[str, Any]:
    assert main(["demo", "--out", str(out), *SMALL, *options]) == 0
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "demo"
    run_demo(out)
    return out


def test_a_run_directory_holds_what_it_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "run.json",
        "tensorboard",
        "checkpoints",
        "model",
        "weights.json",
        "uniform",
        "examples.jsonl",
        "report.html",
    }
    page = (finished / "report.html").read_text()
    assert 'data-key="weights"' in page
    assert page.count('class="example"') >= 1
    summary = json.loads((finished / "summary.json").read_text())
    domains = set(summary["qualities"])
    assert len(domains) == 8
    assert set(summary["weights"]) == domains
    assert json.loads((finished / "weights.json").read_text()) == summary["weights"]
    assert sum(summary["weights"].values()) == pytest.approx(8, rel=1e-5)
    assert set(summary["runs"]) == {"uniform", "domain_table"}
    rows = read_metrics(finished)
    last = {name: value for row in rows if row["step"] == 8 for name, value in row.items()}
    assert {f"weights/{d}": summary["weights"][d] for d in domains}.items() <= last.items()
    assert {"prm/loss", "weighting/loss", "validation/outcome_auc"} <= last.keys()
    assert load_config(str(finished / "config.yaml"), []).steps == 8


def test_the_table_shows_weights_beside_qualities(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demo(finished, "--resume")
    printed = capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    for name, quality in summary["qualities"].items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"| {name} ")]
        assert quality in line
        assert f"{summary['weights'][name]:.2f}" in line
    assert f"{summary['runs']['uniform']['pass_at_n']:.3f}" in printed


def test_a_killed_run_resumes_to_the_same_table(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "dreamprm.cli", "demo", "--out", str(out), *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    # Killed once the learned run has left its first checkpoint, at step 3 of 8.
    while not checkpoint_steps(out / "checkpoints"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    resumed = run_demo(out, "--resume")
    whole = json.loads((finished / "summary.json").read_text())
    assert resumed["weights"] == pytest.approx(whole["weights"], rel=1e-4)
    for name, numbers in whole["runs"].items():
        assert resumed["runs"][name] == pytest.approx(numbers, abs=1e-3)


@pytest.mark.parametrize("method", [*(m for m in METHODS if m != "identity"), "unrolled+forward"])
def test_another_method_is_one_word(finished: Path, tmp_path: Path, method: str) -> None:
    summary = run_demo(tmp_path / "run", f"hypergradient={method}", "baseline=false")
    assert summary["hypergradient"] == method
    weights, default = summary["weights"], json.loads((finished / "weights.json").read_text())
    if method == "t1t2":
        assert weights == default  # what identity takes
    elif method == "darts":
        # Finite differences in the place of the exact product: 1e-3, through Adam.
        assert weights == pytest.approx(default, rel=1e-2)
    else:
        assert weights != default
    assert all(math.isfinite(weight) for weight in weights.values())
    assert len({round(weight, 6) for weight in weights.values()}) == 8


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What ``dreamprm hypergradients`` measures of some methods, by their names."""
    names = ["t1t2", "darts", "cg", "iterations=6", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(words)))
        assert main(["hypergradients", *names]) == 0
    return {row["name"]: row for row in json.loads("\n".join(printed))}


def test_hypergradients_measures_fidelity(methods: dict[str, dict[str, Any]]) -> None:
    tasks = {"ridge", "logistic", "prm, fp32", "prm, bf16", "prm, dropout"}
    for row in methods.values():
        assert row["cosine"].keys() == row["error"].keys() == tasks
        # One mask for all evaluations: dropout costs no precision. HF's norms run in fp32. What a
        # difference of fp32 losses loses depends on the processor's order of sums: 4e-4 to 1.6e-3.
        most = 4e-3 if row["name"] == "darts" else 5e-5
        assert row["error"]["prm, dropout"] < most
        assert row["error"]["prm, fp32"] < most
    assert methods["cg"]["error"]["ridge"] < 1e-8
    assert methods["cg"]["error"]["logistic"] < 1e-8
    assert methods["t1t2"]["error"]["ridge"] > 0.1  # H is not the identity there
    assert methods["t1t2"]["error"]["prm, bf16"] < 0.02
    # Whatever is read in fp32 survives autocast: here a difference loses little to forward mode.
    assert methods["darts"]["error"]["prm, bf16"] > methods["t1t2"]["error"]["prm, bf16"]
    assert "forward mode is not" in methods["darts"]["notes"]["prm, bf16"]
    assert "does not curve upwards" in methods["cg"]["notes"]["prm, fp32"]


def test_hypergradients_counts_costs(methods: dict[str, dict[str, Any]]) -> None:
    # Two evaluations; each product once for the value, the input's tangent and the weight's.
    assert methods["darts"]["forwards"] == pytest.approx(2, abs=0.01)
    assert methods["t1t2"]["forwards"] == pytest.approx(3, abs=0.1)
    assert methods["t1t2"]["copies"] == pytest.approx(1, abs=0.1)  # v alone
    assert methods["darts"]["copies"] == pytest.approx(2, abs=0.1)  # and the shifted parameters
    assert methods["cg"]["forwards"] > 3 * methods["t1t2"]["forwards"]


def test_hypergradients_lists_methods_without_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hypergradients", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed and METHODS[name].source in printed for name in METHODS)
    assert "forwards" not in printed
    assert main(["hypergradients", "--list", "neumann", "alpha=auto", "warm_start=true"]) == 0
    assert "alpha=auto, damping=0, warm_start=true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cgg"], "did you mean 'cg'"),
        (["cg", "rank=3"], "unknown option of cg 'rank'"),
        (["cg", "iterations=-1"], "iterations is -1"),
        (["nystrom", "rank={"], "cannot be read"),
    ],
)
def test_hypergradients_refuses(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hypergradients", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_fidelity_of_the_live_hypergradient_is_logged(finished: Path, tmp_path: Path) -> None:
    logged = [*SMALL, "log_every=1", "fidelity.every=4", "baseline=false"]
    assert main(["demo", "--out", str(tmp_path / "run"), *logged, "precision=bf16"]) == 0
    rows = [r for r in read_metrics(tmp_path / "run") if "prm/hypergradient_cosine" in r]
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        assert 0.9 < row["prm/hypergradient_cosine"] <= 1
        assert 0 < row["prm/hypergradient_error"] < 0.5
    # Looking does not change what is looked at.
    run_demo(tmp_path / "seen", "fidelity.every=2", "baseline=false")
    seen = json.loads((tmp_path / "seen" / "weights.json").read_text())
    assert seen == json.loads((finished / "weights.json").read_text())
    assert not any("prm/hypergradient_cosine" in row for row in read_metrics(finished))


@pytest.mark.parametrize(
    "overrides",
    [
        ["meta_loss=aggregation_mse", "step_loss=cross_entropy", "precision=bf16"],
        [
            "meta_loss=calibrated",
            "meta_loss_options.ridge=1.0",
            "lower.schedule=step",
            "lower.warmup_steps=0",
        ],
        ["model.freeze_vision=true", "data.sampling=proportional", "lower.schedule=cosine"],
        ["model.backbone=tiny-qwen3", "data.images=ignore"],
        ["weighting=uniform"],
    ],
)
def test_the_other_choices_run(tmp_path: Path, overrides: list[str]) -> None:
    summary = run_demo(tmp_path / "run", "baseline=false", *overrides)
    (numbers,) = summary["runs"].values()
    assert 0 <= numbers["best_of_n"] <= numbers["pass_at_n"]


def test_score_writes_a_line_a_solution(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = finished / "synthetic" / "meta.jsonl"
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(finished), str(data), "--out", str(out)]) == 0
    rows = load_trajectories(data)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    expected = ProcessRewardModel.from_pretrained(finished / "model").score(rows)
    assert [row["id"] for row in found] == [row.id for row in rows]
    assert [row["scores"] for row in found] == expected
    assert all(0 < row["aggregated"] < 1 for row in found)
    assert main(["score", str(finished / "model"), str(data)]) == 0
    assert capsys.readouterr().out == out.read_text()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.startswith("dreamprm: ")
    return printed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["step=3"], "unknown key 'step': did you mean 'steps'"),
        (["data.synthetic.solution=3"], "did you mean 'data.synthetic.solutions'"),
        (["steps=many"], "steps"),
        (["steps=0"], "steps is 0, expected at least 1"),
        (["steps"], "not of the form key=value"),
        (["meta_loss=pairwize"], "did you mean 'pairwise'"),
        (["hypergradient=neuman"], "did you mean 'neumann'"),
        (["hypergradient=darts", "hypergradient_options.alpha=1"], "unknown option"),
        (["meta_loss_options.ridge=1"], "meta loss 'pairwise' has no options, found 'ridge'"),
        (["meta_loss=calibrated", "meta_loss_options.ridge=x"], "ridge is 'x'"),
        (["hypergradient=neumann", "hypergradient_options.alpha=x"], "alpha is 'x'"),
        (["seed=-1"], "seed is -1, expected at least 0"),
        (["unroll_steps=9"], "never take a step"),
        (["model.tiny.heads=5"], "cannot have 5 heads"),
        (["lower.learning_rate=-1"], "lower.learning_rate is -1"),
        (["lower.schedule=cosin"], "did you mean 'cosine'"),
        (["lower.schedule=step"], "no warm-up"),
        pytest.param(
            ["device=gpu"],
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["data.train=[x.jsonl]"], "both given"),
        (["data.synthetic.domains.clean-a=cleen"], "did you mean 'clean'"),
        (["model.backbone=tiny-qwen2vl"], "did you mean 'tiny-qwen2-vl'"),
        (["model.backbone=tiny-qwen2"], "images=ignore leaves them out (in a config data.images"),
        (["data.max_tokens=3"], "data.max_tokens"),
        (["model=7"], "model"),
        (["out=''"], "out is empty"),
    ],
)
def test_wrong_values_are_one_message_and_status_2(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    small = [
        o for o in SMALL if o.partition("=")[0] not in {v.partition("=")[0] for v in overrides}
    ]
    printed = refused(capsys, "demo", *small, f"out={out}", *overrides)
    assert message in printed
    assert len(printed.strip().splitlines()[-1]) < 450


def test_wrong_files_and_folders(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean 'demo'" in refused(capsys, "train", "dmo")
    assert "no config file" in refused(capsys, "train", "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("steps: [1")
    assert "is not YAML" in refused(capsys, "train", str(broken))
    broken.write_text("steps: 5\nlowr: {}\n")
    assert "did you mean 'lower'" in refused(capsys, "train", str(broken))
    broken.write_text("steps: 5\n")
    assert "gives no value for" in refused(capsys, "train", str(broken))
    holds = refused(capsys, "demo", *SMALL, f"out={finished}")
    assert "--resume continues it, --overwrite replaces it" in holds
    changed = refused(capsys, "demo", *SMALL, "seed=5", "--out", str(finished), "--resume")
    assert "differs from this config in seed" in changed
    assert "broken.yaml, which is of no run" in refused(capsys, "demo", *SMALL, f"out={tmp_path}")
    assert "no reward model in" in refused(capsys, "score", str(tmp_path), "x.jsonl")
    assert "no file x.jsonl" in refused(capsys, "score", str(finished), "x.jsonl")
    data = str(finished / "synthetic" / "meta.jsonl")
    assert "--max-tokens is 0" in refused(capsys, "score", str(finished), data, "--max-tokens", "0")


def test_every_shipped_config_is_valid() -> None:
    assert {"annotate", "demo", "dreamprm"} < set(shipped_configs())
    for name in shipped_runs():
        assert load_config(name, []).out == f"runs/{name}"


@needs_shared
@pytest.mark.parametrize("name", ["gsm8k", "mathv"])
def test_real_data_train(tmp_path: Path, name: str) -> None:
    small = ["steps=5", "baseline=false", "data.max_tokens=160", "model.tiny.width=32"]
    small += ["model.tiny.heads=2", "lower.batch_size=10", "upper.batch_size=10"]
    small += [f"data.root={SHARED}"]
    if name == "mathv":
        small += ["model.tiny.max_pixels=3136"]
    assert main(["train", name, "--out", str(tmp_path / "run"), *small]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["weights"]) == 5
    numbers = summary["runs"]["domain_table"]
    assert numbers["majority_vote"] is not None
    assert numbers["random_pick"] <= numbers["best_source"] <= numbers["pass_at_n"]


@needs_shared
def test_the_papers_set_up_runs_on_a_tiny_backbone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The published meta file, and training rows in the published format made of its solutions."""
    meta = load_trajectories(SHARED / "dreamprm_meta.json", "dreamprm-meta", images="ignore")
    rows = [
        {
            "input": row.question,
            "add": "\n\n".join(row.steps[: i + 1]),
            "image_path": f"img/{row.id}.png",
            "dataset": ("ai2d", "chartqa", "m3cot")[number % 3],
            "accuracy": (number + i) % 5 / 4,
        }
        for number, row in enumerate(row for row in meta if row.steps)
        for i in range(len(row.steps))
    ]
    train = tmp_path / "train.json"
    train.write_text(json.dumps(rows))
    files = [f"data.train=[{train}]", f"data.meta=[{SHARED / 'dreamprm_meta.json'}]", "steps=10"]
    tiny = ["model.backbone=tiny-qwen2-vl", *files]
    out = tmp_path / "run"
    assert "there is no image" in refused(capsys, "train", "dreamprm", *tiny, f"out={out}")
    command = ["train", "dreamprm", *tiny, "--out", str(out)]
    assert main([*command, "data.images=skip_missing"]) == 0
    printed = caplog.text
    assert "images of 128 of 128 rows are missing" in printed
    assert "372 of 500 rows hold a question without a step" in printed
    assert "meta: 372 of 500 solutions left out" in printed
    assert "all 128 usable solutions of the meta set are right" in printed
    weights = json.loads((out / "weights.json").read_text())
    assert set(weights) == {"ai2d", "chartqa", "m3cot"}
    assert len(set(weights.values())) == 3


@pytest.mark.parametrize(
    "override",
    [
        "lower.decay_every=0",
        "model.max_pixels=-10",
        "upper.weight_decay=-1",
        "lower.warmup_steps=-5",
        "model.tiny.layers=0",
        "early_stopping.patience=-1",
        "data.synthetic.domains=[]",
    ],
)
def test_values_out_of_range_are_one_message(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "run"), *SMALL, override]) == 2
    assert override.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_data_are_no_resumed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    draw_synthetic(data, {"a": "clean", "b": "random"}, 24, 40, 6, 8, 0).save(data)
    train, config = data / "train-a.jsonl", tmp_path / "config.yaml"
    config.write_text(
        f"""
steps: 4
unroll_steps: 2
validate_every: 4
baseline: false
out: {out}
data: {{train: [{train}, {data}/train-b.jsonl], meta: [{data}/meta.jsonl]}}
model: {{backbone: tiny-qwen2-vl, tiny: {{width: 32, heads: 2, layers: 1}}}}
lower: {{learning_rate: 1e-3, batch_size: 8}}
upper: {{learning_rate: 0.1, batch_size: 8}}
"""
    )
    assert main(["train", str(config)]) == 0
    (out / "summary.json").unlink()
    assert main(["train", str(config), "--resume"]) == 0
    lines = train.read_text().splitlines(keepends=True)
    train.write_text("".join(lines[:-1]))
    assert main(["train", str(config), "--resume"]) == 2
    assert "the data are not those that the run was begun with" in capsys.readouterr().err


def test_options_are_not_abbreviated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.jsonl"
    out.write_text("kept")
    with pytest.raises(SystemExit) as ended:
        main(["score", "m", "d.jsonl", "--out", str(out), "--overwrit"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --overwrit" in capsys.readouterr().err
    assert out.read_text() == "kept"
