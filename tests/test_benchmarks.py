"""The benchmarks run, at sizes that say nothing: what they measure is in docs/benchmarks.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = ["--width", "64", "--layers", "1"]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("cycle.py", [*SMALL, "--repeats", "1"]),
        ("memory.py", [*SMALL]),
        ("scaling.py", ["domains", *SMALL, "--repeats", "1"]),
        ("scoring.py", [*SMALL, "--rounds", "1"]),
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
        ("hypergradients.py", ["exactness", "cost", "--width", "128", "--layers", "1"]),
    ],
)
def test_every_line_is_a_measurement(script: str, arguments: list[str]) -> None:
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    assert all(any(isinstance(v, int | float | dict | list) for v in r.values()) for r in rows)
