"""Hyper-cleaning over seeds: hypergradient methods side by side, and other libraries.

python benchmarks/hyper_cleaning.py --folder DIR --seeds 10 --network linear --others

Prints a Markdown table: test accuracy, F1 of finding the wrong labels, seconds of the processor and
the most bytes of tensors that come to be in one cycle (the lower steps of an upper one, and that);
mean and 95 % interval of Student's t over seeds. All runs have the same data, steps and first
parameters. Learning rates and options were tuned on seeds from 100, by validation accuracy.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from others import Runnable, betty, boat
from scipy.stats import t

from dreamprm import load_config
from dreamprm.hypergradients.cost import peak_bytes
from dreamprm.hypergradients.solvers import CurvatureWarning
from dreamprm.run_directory.opening import open_run
from dreamprm.tables import table
from dreamprm.tasks.hyper_cleaning import Config, NoisyImages, build, f1, noisy_images
from dreamprm.tasks.mnist import accuracy

WEIGHTINGS = {
    "uniform": ["weighting=uniform"],
    "oracle": [
        *("weighting=fixed", "weighting_options.column=clean"),
        "weighting_options.weights={true: 1, false: 0}",
    ],
    "instance_network": ["weighting=instance_network", "upper.learning_rate=0.01"],
}
TUNED = {  # of a hypergradient method
    "cg": ["hypergradient_options.iterations=5", "hypergradient_options.damping=0.01"],
    "neumann": ["hypergradient_options.iterations=5"],
    "soba": ["hypergradient_options.alpha=0.3"],
}
METHODS = [*WEIGHTINGS, "identity", "cg", "neumann", "soba", "unrolled"]
OTHERS: dict[str, tuple[Callable[..., Runnable], str, dict[str, Any]]] = {
    "betty: darts": (betty, "darts", {}),
    "betty: cg": (betty, "cg", {"cg_iterations": 5}),
    "betty: neumann": (betty, "neumann", {"neumann_iterations": 5, "neumann_alpha": 0.1}),
    "BOAT: RAD": (boat, "RAD", {}),
    "BOAT: CG": (boat, "CG", {"k": 5}),
    "BOAT: NS": (boat, "NS", {"k": 5}),
}
BARE = ["device=cpu", "baseline=false", "checkpoint_every=0"]


def config_of(options: argparse.Namespace, seed: int, *words: str) -> Config:
    """The shipped config, without validations on the way."""
    given = [f"network={options.network}", f"seed={seed}", *BARE, *words, *options.overrides]
    if options.folder:
        given.append(f"folder={options.folder}")
    config: Config = load_config("hyper_cleaning", [*given, "out=none"])
    config.validate_every = config.log_every = config.steps
    return config


def ours(options: argparse.Namespace, method: str, seed: int, counted: bool) -> dict[str, float]:
    """A run of the project."""
    words = WEIGHTINGS.get(method) or [f"hypergradient={method}", *TUNED.get(method, [])]
    config = config_of(options, seed, *words)
    with tempfile.TemporaryDirectory() as folder:
        config.out = f"{folder}/run"
        with open_run(Path(config.out), config, resume=False, overwrite=False) as opened:
            task = build(config, opened)
            engine = task.engine(config, Path(config.out))
            engine.config.progress = None
            start = time.process_time()
            engine.run()
            seconds = time.process_time() - start
            numbers = task.end(engine, Path(config.out)) | {"seconds": seconds}

    def cycle() -> None:
        for _ in range(config.unroll_steps):
            engine.global_step += 1
            engine.train_step()

    return numbers | ({"MB": peak_bytes(cycle) / 1e6} if counted else {})


def another(
    options: argparse.Namespace, name: str, seed: int, counted: bool, data: NoisyImages
) -> dict[str, float]:
    """A run of another library."""
    make, method, given = OTHERS[name]
    config = config_of(options, seed)
    found = make(config, data, method, given)
    start = time.process_time()
    for _ in range(config.steps // config.unroll_steps):
        found.cycle()
    numbers = {"seconds": time.process_time() - start}
    with torch.no_grad():
        wrong = found.weights.row_weights() < config.wrong_below
        numbers["accuracy"] = accuracy(found.network, data.test)
        numbers["validation_accuracy"] = accuracy(found.network, data.validation)
        numbers["f1"] = f1(wrong, ~data.clean)
    return numbers | ({"MB": peak_bytes(found.cycle) / 1e6} if counted else {})


def shown(values: list[float], digits: int) -> str:
    """Mean and 95 % interval; – for no values."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


def of_seed(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """The numbers of every method on one seed; memory is counted on the first."""
    logging.basicConfig(level=logging.WARNING)
    warnings.simplefilter("once", CurvatureWarning)
    data = noisy_images(config_of(options, seed))
    counted = seed == options.first
    found = {}
    for name in [*options.methods, *options.others]:
        if name in options.others:
            found[name] = another(options, name, seed, counted, data)
        else:
            found[name] = ours(options, name, seed, counted)
        print(seed, name, {k: round(v, 4) for k, v in found[name].items()}, file=sys.stderr)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="with MNIST's four files; by default the hub's")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed; for tuning, 100")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, a thread each")
    parser.add_argument("--network", choices=("linear", "mlp"), default="linear")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="or any hypergradient")
    parser.add_argument("--others", nargs="*", choices=OTHERS, help="libraries; all by default")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    options.others = list(OTHERS) if options.others == [] else options.others or []
    if options.others and find_spec("boat_torch") is None:
        print("no boat_torch here: BOAT is left out; benchmarks/others.py says how to install it",
              file=sys.stderr)  # fmt: skip
        options.others = [name for name in options.others if OTHERS[name][0] is not boat]
    seeds = range(options.first, options.first + options.seeds)
    one = partial(of_seed, options)
    if options.jobs == 1:
        found = list(map(one, seeds))
    else:
        spawn = get_context("spawn")
        with ProcessPoolExecutor(options.jobs, spawn, torch.set_num_threads, (1,)) as pool:
            found = list(pool.map(one, seeds))
    header = ["method", "test accuracy", "F1", "validation accuracy", "seconds", "MB"]
    columns = [("accuracy", 3), ("f1", 3), ("validation_accuracy", 3), ("seconds", 1), ("MB", 1)]
    rows = []
    for name in found[0]:
        runs = [of[name] for of in found]
        rows.append([name, *(shown([run[k] for run in runs if k in run], n) for k, n in columns)])
    print(table(header, rows))


if __name__ == "__main__":
    main()
