"""The demo over several seeds and meta objectives: uniform weights against learned ones.

    python benchmarks/demo_seeds.py --seeds 5 --jobs 2 --out runs/demo-seeds

Prints the tables of docs/results.md. A run that is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dreamprm.data.synthetic import HARMFUL
from dreamprm.tables import table

OBJECTIVES = ("pairwise", "aggregation_mse")


def run(seed: int, objective: str, out: Path, extra: list[str]) -> dict[str, Any]:
    """One run of the demo in a process of its own, on one thread; its summary."""
    folder = out / f"{objective}-{seed}"
    baseline = "true" if objective == OBJECTIVES[0] else "false"
    command = [sys.executable, "-m", "dreamprm.cli", "demo", "--resume", "--out", str(folder)]
    command += [f"seed={seed}", f"meta_loss={objective}", f"baseline={baseline}", *extra]
    if not (folder / "summary.json").is_file():
        start = time.perf_counter()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (out / f"{objective}-{seed}.log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
        print(f"{folder}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return json.loads((folder / "summary.json").read_text())


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument("extra", nargs="*", metavar="key=value")
    options = parser.parse_args()
    todo = [(seed, objective) for seed in range(options.seeds) for objective in OBJECTIVES]
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda job: run(*job, options.out, options.extra), todo))
    summaries = dict(zip(todo, done, strict=True))

    rows = []
    for seed in range(options.seeds):
        first = summaries[seed, OBJECTIVES[0]]["runs"]
        numbers = {"uniform": first["uniform"]} | {
            objective: summaries[seed, objective]["runs"]["domain_table"]
            for objective in OBJECTIVES
        }
        best = [f"{n['best_of_n']:.3f}" for n in numbers.values()]
        aucs = [f"{n['step_auc']:.3f}" for n in numbers.values()]
        bounds = [f"{first['uniform'][key]:.3f}" for key in ("random_pick", "pass_at_n")]
        rows.append([str(seed), *bounds, *best, *aucs])
    names = ["uniform", *OBJECTIVES]
    header = ["seed", "random pick", "pass@8"]
    header += [f"best of 8, {name}" for name in names] + [f"step AUC, {name}" for name in names]
    print(table(header, rows), end="\n\n")

    for objective in OBJECTIVES:
        runs = [summaries[seed, objective] for seed in range(options.seeds)]
        qualities = runs[0]["qualities"]
        rows = [
            [name, quality, *(f"{summary['weights'][name]:.2f}" for summary in runs)]
            for name, quality in qualities.items()
        ]
        print(f"Learned weights, {objective}:\n")
        seeds = [f"seed {seed}" for seed in range(options.seeds)]
        print(table(["domain", "known quality", *seeds], rows), end="\n\n")
        for seed, summary in enumerate(runs):
            weights = summary["weights"]
            clean = min(weights[n] for n, quality in qualities.items() if quality == "clean")
            harmful = max(weights[n] for n, quality in qualities.items() if quality in HARMFUL)
            print(f"seed {seed}: lowest clean {clean:.2f}, highest harmful {harmful:.2f}")
        print()


if __name__ == "__main__":
    main()
