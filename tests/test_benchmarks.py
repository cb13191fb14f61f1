"""The benchmarks run, at sizes that say nothing: what they measure is in docs/benchmarks.md."""

from __future__ import annotations

import importlib
import json
import math
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
CONFIGS = FOLDER.parent / "configs"
SMALL = ["--width", "64", "--layers", "1"]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("cycle.py", [*SMALL, "--repeats", "1"]),
        ("memory.py", [*SMALL]),
        ("annotation.py", ["--solutions", "10"]),
        ("scaling.py", ["domains", *SMALL, "--repeats", "1"]),
        ("rows.py", ["--rows", "2000", "--repeats", "1"]),
        ("scoring.py", [*SMALL, "--rounds", "1"]),
        ("reading.py", ["--rows", "500", "--steps", "5"]),
        ("select_killed.py", ["--questions", "4", "--kills", "1"]),
        (
            "observing.py",
            [
                "data.synthetic.solutions=24",
                "data.synthetic.meta=40",
                "data.synthetic.questions=6",
                "model.tiny.width=32",
                "model.tiny.heads=2",
                "lower.batch_size=16",
            ],
        ),
        ("difference_steps.py", ["--quick"]),
    ],
)
def test_every_line_is_a_measurement(
    script: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In this process, which has imported torch already.
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    done = capsys.readouterr().out
    rows = [json.loads(line) for line in done.splitlines()]
    assert rows
    for row in rows:
        assert all(math.isfinite(number) for number in _numbers(row)), row
        apart = [row[key] for key in ("logits apart", "scores_apart") if key in row]
        assert all(value < 1e-5 for value in apart), row


def test_baselines_stand_beside_each_other_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("noisy_labels", "--metric", "accuracy", "--seeds", "2", "--out", str(tmp_path)),
        *("--ways", "domain_table", "uniform", "--words", "steps=10"),
        *("--way", "by cg", "weighting=domain_table", "hypergradient=cg"),
    ]
    monkeypatch.setattr(sys, "argv", ["baselines.py", *arguments])
    monkeypatch.syspath_prepend(str(FOLDER))
    printed = []
    for _ in range(2):
        runpy.run_path(str(FOLDER / "baselines.py"), run_name="__main__")
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]  # the seconds are kept, so nothing ran again
    monkeypatch.setattr(sys, "argv", ["baselines.py", *arguments, "--against", "uniform"])
    runpy.run_path(str(FOLDER / "baselines.py"), run_name="__main__")
    assert "| to uniform |" in " ".join(capsys.readouterr().out.split())
    first, second = printed[0].split("\n\n")
    ways = [line.split("|")[1].strip() for line in first.splitlines()[2:]]
    steps = [int(line.split("|")[2]) for line in first.splitlines()[2:]]
    assert ways == ["domain_table", "uniform", "by cg"]
    assert steps[0] == 10
    assert steps[1] > 10 > steps[2]
    kept = [json.loads((tmp_path / f"uniform-{seed}.json").read_text()) for seed in range(2)]
    mean = sum(each["numbers"]["accuracy"] for each in kept) / 2
    assert f"| {mean:.4f} ± " in first.splitlines()[3]
    assert [line.split("|")[1].strip() for line in second.splitlines()[2:]] == [
        "domain_table",
        "by cg",
    ]


PAGE = """# Results

## First, it's said

```sh
echo "$OUT" && echo ran >> "$OUT/runs"
```

## Second

```sh
cat "$ROOT/there"
```
"""


def test_the_page_of_results_is_the_list_of_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    evidence = importlib.import_module("evidence")
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text(PAGE)
    monkeypatch.setattr(evidence, "PAGE", page)

    def printed(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evidence.py", "--out", str(tmp_path), *more])
        evidence.main()
        return capsys.readouterr().out

    first = printed()
    assert "first-its-said-1: 0 s" in first
    assert "second-1: left out, it needs --root" in first
    kept = (tmp_path / "first-its-said-1.md").read_text()
    assert kept.startswith('```sh\necho "$OUT" && ')
    assert f"\n{tmp_path}\n" in kept
    assert "first-its-said-1: there already" in printed()
    printed("--again")
    page.write_text(PAGE.replace("ran", "ran again"))
    printed("--only", "first")
    assert (tmp_path / "runs").read_text().splitlines() == ["ran", "ran", "ran again"]
    with pytest.raises(SystemExit, match="failed: second-1"):
        printed("--root", str(tmp_path))
    assert not (tmp_path / "second-1.md").exists()
    (tmp_path / "there").write_text("now\n")
    printed("--root", str(tmp_path))
    assert "now" in (tmp_path / "second-1.md").read_text()


def test_what_the_page_of_results_runs_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    evidence = importlib.import_module("evidence")
    found = "".join(block.text for block in evidence.blocks(evidence.PAGE.read_text()))
    scripts = set(re.findall(r"python benchmarks/(\S+)", found))
    configs = set(re.findall(r"dreamprm train (\w+)", found))
    assert scripts
    assert configs
    assert all((FOLDER / name).is_file() for name in scripts), scripts
    assert configs <= {path.stem for path in CONFIGS.glob("*.yaml")}


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for each in inner for number in _numbers(each)]
    return [value] if isinstance(value, int | float) else []
