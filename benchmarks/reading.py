"""Opening a file of very many solutions and drawing batches of it: "Reading" of docs/benchmarks.md.

    python benchmarks/reading.py

Makes a file of a million short solutions in a temporary folder, and reads it in a process of its
own each way, so that each has a peak of its own: ``indexed``, on disk with the index made;
``again``, with the index there; ``train``, fifty steps of ``dreamprm train`` on it; ``validate``,
``dreamprm validate``; ``in_memory``, as a list. Prints JSON lines: seconds to open and solutions
drawn a second, in CPU time, which others on the machine disturb less, and the peak resident memory,
of which ``imports_mib`` is what the process takes before it reads anything.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("indexed", "again", "train", "validate", "in_memory")


def make(path: Path, rows: int) -> None:
    """A file of solutions of sums, in six domains of unequal size."""
    with path.open("w") as file:
        for number in range(rows):
            a, b = number * 7919 % 9973, number * 104729 % 7919
            domain = min(number * 31 % 28, 27)
            record = {
                "id": f"solution-{number}",
                "domain": f"domain-{int(domain**0.5)}",
                "question": f"A farm has {a} hens and {b} geese. How many birds has it in all?",
                "steps": [
                    f"Step 1: There are {a} hens, which are birds.",
                    f"Step 2: There are {b} geese, which are birds too.",
                    f"Step 3: Together that is {a} + {b} = {a + b} birds.",
                ],
                "step_labels": [1.0, number % 9 / 8, number % 5 / 4],
                "outcome": number % 2 == 0,
            }
            file.write(json.dumps(record) + "\n")


def read(way: str, path: Path, steps: int) -> dict[str, Any]:
    """One way to read it, in this process."""
    if way == "train":
        return train(path, steps)
    if way == "validate":
        return command(["validate", str(path)], peak())
    from dreamprm.data.batches import BatchStream
    from dreamprm.data.config import DataConfig
    from dreamprm.data.sources import load_data

    streaming = "never" if way == "in_memory" else "always"
    imports = peak()
    begun = time.process_time()
    data = load_data(DataConfig(train=[str(path)], streaming=streaming), path.parent, seed=0)
    opened = time.process_time()
    batches = iter(BatchStream(data.train, 64, len, 0, data.train.groups()))
    next(batches)
    first = time.process_time()
    for _ in range(steps):
        next(batches)
    return {
        "seconds_to_open": round(opened - begun, 2),
        "seconds_to_first_batch": round(first - opened, 2),
        "drawn_per_second": round(64 * steps / (time.process_time() - first)),
        "imports_mib": imports,
    }


def train(path: Path, steps: int) -> dict[str, Any]:
    """``dreamprm train`` with a tiny text model, the index being there."""
    importlib.import_module("dreamprm.tasks.prm.task")
    imports = peak()
    arguments = {
        "out": path.parent / "run",
        "steps": steps,
        "unroll_steps": 5,
        "baseline": "false",
        "data.train": f"[{path}]",
        "data.meta": f"[{path.parent / 'meta.jsonl'}]",
        "model.backbone": "tiny-qwen2",
        "model.tiny.width": 64,
        "model.tiny.heads": 2,
        "lower.learning_rate": 1e-3,
        "lower.batch_size": 32,
        "upper.learning_rate": 0.05,
        "upper.batch_size": 32,
    }
    config = path.parent / "config.yaml"
    config.write_text("{}\n")
    return command(["train", str(config), *(f"{k}={v}" for k, v in arguments.items())], imports)


def command(words: list[str], imports: int) -> dict[str, Any]:
    """A command of ``dreamprm``."""
    from dreamprm.cli import main

    begun = time.process_time()
    status = main(words)
    if status:
        sys.exit(status)
    return {"seconds": round(time.process_time() - begun, 1), "imports_mib": imports}


def peak() -> int:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ways", nargs="*", metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=50, help="batches drawn, or steps trained")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # a way, in the process of its own
    options = parser.parse_args()
    unknown = set(options.ways) - set(WAYS)
    if unknown:
        parser.error(f"unknown way {min(unknown)!r}: known are {', '.join(WAYS)}")
    if options.inside:
        way = options.ways[0]
        print(json.dumps(read(way, Path(options.inside), options.steps) | {"peak_mib": peak()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.jsonl"
        make(path, options.rows)
        make(path.with_name("meta.jsonl"), 200)
        size = round(path.stat().st_size / 2**20)
        environment = os.environ | {"DREAMPRM_CACHE": str(Path(folder) / "cache")}
        for way in options.ways or WAYS:
            command = [sys.executable, __file__, way, "--inside", str(path)]
            done = subprocess.run(
                [*command, "--steps", str(options.steps)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            head = {"way": way, "rows": options.rows, "file_mib": size}
            print(json.dumps(head | found), flush=True)


if __name__ == "__main__":
    main()
