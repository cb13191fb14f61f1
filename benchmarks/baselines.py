"""Learned weights beside what they are held against, at equal cost, over seeds.

    python benchmarks/baselines.py noisy_labels --metric accuracy --seeds 10

The first way has the steps of the config, every other one as many as cost the same by counted
operations. Prints the mean over seeds with its 95 % interval, the difference to the first way (or
to that of --against) seed by seed, and the p of a paired t-test; then the weights of the groups
that were learned. `{seed}` in a word is the seed. With --out, a finished run is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from dreamprm import load_config, train
from dreamprm.hypergradients.cost import operations
from dreamprm.run_directory.opening import open_run
from dreamprm.tables import table
from dreamprm.tasks.modules import find_task

PLAIN = {
    "uniform": ["weighting=uniform"],
    "oracle": ["weighting=oracle"],
    "focal": ["weighting=focal"],
    "worst group": ["weighting=worst_group"],
    "meta set added": ["weighting=uniform", "train_on=both"],
    "meta set only": ["weighting=uniform", "train_on=meta"],
}
OF_STEPS = {"balanced information": ["weighting=balanced_information"]}  # where steps have labels
ALIGNED = ["hypergradient=identity", "unroll_steps=1"]
LEARNED = {
    "domain_table": ["weighting=domain_table"],
    "instance_table": ["weighting=instance_table"],
    "instance_network": ["weighting=instance_network"],
    "learning to reweight": ["weighting=learning_to_reweight", *ALIGNED],
    # The inner product of a group's gradient with the meta set's, one a step and no H.
    "gradient alignment": ["weighting=domain_table", *ALIGNED],
}
MOVING = ("worst group",)  # whose groups' weights move without being learned


def step_operations(config: Any) -> float:
    """Counted operations of one lower step, and its share of the upper step that follows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        config = replace(config, out=str(out), unroll_steps=min(config.unroll_steps, config.steps))
        with open_run(out, config, resume=False, overwrite=False) as run:
            engine = find_task(config.task).build(config, run).engine(config, out)

            def cycle() -> None:
                for _ in range(config.unroll_steps):
                    engine.global_step += 1
                    engine.train_step()

            cycle()  # the first one is also checked
            return operations(cycle) / config.unroll_steps


@dataclass
class Result:
    """Of one run: a number of its summary, the groups' weights and seconds."""

    value: float
    weights: dict[str, float]
    seconds: float


def measure(
    config: str, way: str, words: list[str], metric: str, out: Path | None, seed: int
) -> Result:
    """One run; where it is kept already, it is read."""
    logging.getLogger("dreamprm").setLevel(logging.ERROR)
    kept = out / f"{way.replace(' ', '-')}-{seed}.json" if out else None
    words = [word.replace("{seed}", str(seed)) for word in words] + [f"seed={seed}"]
    if kept and kept.is_file():
        found = json.loads(kept.read_text())
        if found["words"] != words:
            raise SystemExit(f"{kept} is of a run with other words: take another --out")
    else:
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_config(config, [*words, f"out={folder}/run", "baseline=false"])
            start = time.perf_counter()
            summary = train(loaded)
        found = {
            "words": words,
            "seconds": time.perf_counter() - start,
            "numbers": summary["runs"][loaded.weighting],
            "weights": summary.get("weights") or {},
        }
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found))
    result = Result(found["numbers"][metric], found["weights"], found["seconds"])
    print(f"{way}, seed {seed}: {result}", file=sys.stderr)
    return result


def interval(values: np.ndarray, digits: int = 4) -> str:
    """Mean and half the width of its 95 % interval."""
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.{digits}f} ± {half:.{digits}f}"


def compared(
    found: dict[str, list[Result]], steps: dict[str, int], metric: str, against: str
) -> str:
    """The table of the metric, every way against one of them."""
    rows = []
    for name, results in found.items():
        values = np.array([result.value for result in results])
        apart = values - [result.value for result in found[against]]
        several = len(values) > 1 and name != against
        rows.append(
            [
                name,
                str(steps[name]),
                interval(values),
                "" if name == against else interval(apart),
                f"{stats.ttest_rel(apart, 0 * apart).pvalue:.2g}" if several else "",
                f"{np.median([result.seconds for result in results]):.1f}",
            ]
        )
    return table(["weights", "lower steps", metric, f"to {against}", "p", "seconds"], rows)


def of_groups(found: dict[str, list[Result]], bad: list[str]) -> str:
    """The table of the groups' weights w and of (Σw)² / Σw², how many groups count in effect;
    "below" counts seeds whose bad groups are all below the others."""
    learned = {
        name: [result.weights for result in results]
        for name, results in found.items()
        if name in MOVING or name not in PLAIN
    }
    learned = {name: of for name, of in learned.items() if of[0]}
    if not learned:
        return ""
    groups = list(next(iter(learned.values()))[0])
    rows = []
    for name, of in learned.items():
        row = [name, *(interval(np.array([each[g] for each in of]), 2) for g in groups)]
        shares = np.array([[each[g] for g in groups] for each in of])
        row.append(interval(shares.sum(1) ** 2 / (shares**2).sum(1), 1))
        if bad:
            below = [
                max(each[g] for g in bad) < min(each[g] for g in groups if g not in bad)
                for each in of
            ]
            row.append(f"{sum(below)} of {len(of)}")
        rows.append(row)
    header = ["mean weight", *groups, "groups in effect"]
    return table([*header, *(["bad ones below"] if bad else [])], rows)


def main() -> None:
    """Runs all ways and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a path, or the name of a shipped config")
    parser.add_argument("--metric", required=True, help="a number of summary.json")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed; for tuning, 100")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, a thread each")
    parser.add_argument(
        "--ways", nargs="*", default=["domain_table", *PLAIN], choices=[*LEARNED, *PLAIN, *OF_STEPS]
    )
    parser.add_argument(
        "--way", nargs="+", action="append", default=[], metavar="WORD",
        help="a way of one's own: its name, then key=value words",
    )  # fmt: skip
    parser.add_argument("--against", help="what the others are held against, else the first way")
    parser.add_argument("--oracle", nargs="*", default=[], help="key=value words of the oracle")
    parser.add_argument("--bad", nargs="*", default=[], help="groups that should weigh least")
    parser.add_argument("--words", nargs="*", default=[], help="key=value words of every run")
    parser.add_argument("--out", type=Path, help="a folder for what every run says")
    options = parser.parse_args()
    logging.getLogger("dreamprm").setLevel(logging.ERROR)
    ways = {name: (LEARNED | PLAIN | OF_STEPS)[name] for name in options.ways}
    ways |= {own[0]: own[1:] for own in options.way}
    if options.against not in (None, *ways):
        parser.error(f"--against {options.against} is none of {', '.join(ways)}")
    found: dict[str, list[Result]] = {}
    steps: dict[str, int] = {}
    whole = 0.0  # operations of a run
    for name, own in ways.items():
        words = [*options.words, *own, *(options.oracle if name == "oracle" else [])]
        given = [word.replace("{seed}", str(options.first)) for word in words]
        config = load_config(options.config, [*given, "out=none"])
        each = step_operations(config)
        whole = whole or each * config.steps
        steps[name] = round(whole / each)
        words += [f"steps={steps[name]}", f"validate_every={steps[name]}", "checkpoint_every=0"]
        one = partial(measure, options.config, name, words, options.metric, options.out)
        seeds = range(options.first, options.first + options.seeds)
        if options.jobs == 1:
            found[name] = list(map(one, seeds))
        else:
            spawn = get_context("spawn")
            with ProcessPoolExecutor(options.jobs, spawn, torch.set_num_threads, (1,)) as pool:
                found[name] = list(pool.map(one, seeds))
    print(compared(found, steps, options.metric, options.against or next(iter(found))))
    if weights := of_groups(found, options.bad):
        print("\n" + weights)


if __name__ == "__main__":
    main()
