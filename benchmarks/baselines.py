"""Learned weights beside what they are held against, at equal cost, over seeds.

    python benchmarks/baselines.py noisy_labels --metric accuracy --seeds 10

The first learned way has the steps of the config, every other one as many as cost the same by
counted operations. Prints the mean over seeds with its 95 % interval, the difference to the
learned weights seed by seed, and the p of a paired t-test.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
ALIGNED = ["hypergradient=identity", "unroll_steps=1"]
LEARNED = {
    "domain_table": ["weighting=domain_table"],
    "instance_table": ["weighting=instance_table"],
    "instance_network": ["weighting=instance_network"],
    "learning to reweight": ["weighting=learning_to_reweight", *ALIGNED],
    # The inner product of a group's gradient with the meta set's, one a step and no H.
    "gradient alignment": ["weighting=domain_table", *ALIGNED],
}


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


def measure(name: str, words: list[str], seed: int, metric: str) -> tuple[float, float]:
    """The metric of a run, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*words, f"seed={seed}", f"out={folder}/run", "baseline=false"]
        config = load_config(name, given)
        start = time.perf_counter()
        numbers = train(config)["runs"][config.weighting]
        return numbers[metric], time.perf_counter() - start


def interval(values: np.ndarray) -> str:
    """Mean and half the width of its 95 % interval."""
    if len(values) < 2:
        return f"{values.mean():.4f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.4f} ± {half:.4f}"


def main() -> None:
    """Runs all ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a path, or the name of a shipped config")
    parser.add_argument("--metric", required=True, help="a number of summary.json")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--learned", nargs="+", default=["domain_table"], choices=LEARNED)
    parser.add_argument("--plain", nargs="+", default=list(PLAIN), choices=PLAIN)
    parser.add_argument("--oracle", nargs="*", default=[], help="key=value words of the oracle")
    parser.add_argument("--words", nargs="*", default=[], help="key=value words of every run")
    options = parser.parse_args()
    logging.getLogger("dreamprm").setLevel(logging.WARNING)
    first = options.learned[0]
    ways = {name: LEARNED[name] for name in options.learned}
    ways |= {name: PLAIN[name] for name in options.plain}
    found: dict[str, np.ndarray] = {}
    rows = []
    whole = 0.0  # operations of a run
    for name, own in ways.items():
        words = [*options.words, *own]
        words += options.oracle if name == "oracle" else []
        config = load_config(options.config, [*words, "out=none"])
        each = step_operations(config)
        whole = whole or each * config.steps
        steps = round(whole / each)
        words += [f"steps={steps}", f"validate_every={steps}", "checkpoint_every=0"]
        runs = [measure(options.config, words, s, options.metric) for s in range(options.seeds)]
        found[name] = np.array([value for value, _ in runs])
        apart = found[name] - found[first]
        several = options.seeds > 1 and name != first
        test = stats.ttest_rel(found[name], found[first]).pvalue if several else math.nan
        rows.append(
            [
                name,
                str(steps),
                interval(found[name]),
                "" if name == first else f"{interval(apart)}",
                f"{test:.2g}" if several else "",
                f"{np.median([seconds for _, seconds in runs]):.1f}",
            ]
        )
        print(f"{name}: {rows[-1][2]}", file=sys.stderr)
    header = ["weights", "lower steps", options.metric, f"to {first}", "p", "seconds"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
