"""People's step labels under trouble: learned weights beside uniform ones, over seeds.

    python benchmarks/processbench.py --root DIR --backbone DIR --seeds 10 --trouble inverted

ProcessBench's gsm8k and math are four domains by halves of their problems; one half of each gets
trouble: its labels are shuffled among its steps, or inverted. A meta set of 60 problems and the
test of a third of the problems stay clean. Prints step AUC on the test, mean and 95 % interval over
seeds, the difference to uniform weights and its p by a paired t-test; and the learned weights, with
how often both troubled domains are below both clean ones.

The backbone is frozen and its states are computed once (docs/models.md); a run takes seconds.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from baselines import interval
from scipy import stats

from dreamprm import load_config
from dreamprm.data.formats import load_trajectories, save_trajectories
from dreamprm.data.trajectory import Trajectory
from dreamprm.evaluation.step_metrics import auc
from dreamprm.run_directory.opening import open_run
from dreamprm.tables import table
from dreamprm.tasks.prm import build

FILES = ("gsm8k", "math")
LEARNED = ["weighting=domain_table"]
WAYS = {
    "uniform": ["weighting=uniform"],
    "clean domains only": ["weighting=oracle", "weighting_options.column=domain",
                           "weighting_options.values=[gsm8k-a, math-a]"],
    "meta set added": ["weighting=uniform", "train_on=both"],
    "meta set only": ["weighting=uniform", "train_on=meta"],
    "worst group": ["weighting=worst_group"],
    "focal": ["weighting=focal"],
    "identity": LEARNED,
    "cg": [*LEARNED, "hypergradient=cg", "hypergradient_options.damping=0.1"],
    "neumann": [*LEARNED, "hypergradient=neumann"],
    "soba": [*LEARNED, "hypergradient=soba"],
    "unrolled": [*LEARNED, "hypergradient=unrolled"],
    "by cross-entropy": [*LEARNED, "meta_loss=step_cross_entropy"],
    "by outcomes": [*LEARNED, "meta_loss=pairwise"],
    "by outcomes, calibrated": [*LEARNED, "meta_loss=calibrated"],
    "by outcomes, aggregation_mse": [*LEARNED, "meta_loss=aggregation_mse"],
    "row table": ["weighting=instance_table"],
    "learning to reweight": ["weighting=learning_to_reweight", "unroll_steps=1"],
}  # fmt: skip
TROUBLED = ("gsm8k-b", "math-b")


def solutions(root: Path, most: int | None, characters: int | None) -> list[Trajectory]:
    """The first so many right solutions of every file, and as many wrong ones, of those that are
    not longer; right are those none of whose steps is wrong."""
    found = []
    for name in FILES:
        taken = {True: 0, False: 0}
        for row in load_trajectories(str(root / f"{name}.json"), "processbench"):
            if characters and len(row.question) + sum(map(len, row.steps)) > characters:
                continue
            labels = row.step_labels or ()
            right = 0.0 not in labels
            taken[right] += 1
            if most is None or taken[right] <= most:
                found.append(replace(row, domain=name, outcome=right))
    return found


def parts(
    rows: Sequence[Trajectory], trouble: str, seed: int, meta: int
) -> tuple[list[Trajectory], list[Trajectory], list[Trajectory]]:
    """Training solutions in four domains, meta set and test, apart by their problems."""
    draw = random.Random(seed)
    problems = sorted({row.question for row in rows})
    draw.shuffle(problems)
    test = set(problems[: len(problems) // 3])
    of_meta = set(problems[len(test) : len(test) + meta])
    half = {problem: "ab"[i % 2] for i, problem in enumerate(problems)}
    training = [
        replace(row, domain=f"{row.domain}-{half[row.question]}")
        for row in rows
        if row.question not in test | of_meta
    ]
    for domain in TROUBLED:
        places = [i for i, row in enumerate(training) if row.domain == domain]
        labels = [label for i in places for label in training[i].step_labels or ()]
        known = [label for label in labels if label is not None]
        if trouble == "shuffled":
            draw.shuffle(known)
        elif trouble == "inverted":
            known = [1 - label for label in known]
        new = iter(known)
        for i in places:
            old = training[i].step_labels or ()
            fresh = tuple(None if label is None else next(new) for label in old)
            training[i] = replace(training[i], step_labels=fresh)
    return (
        training,
        [row for row in rows if row.question in of_meta],
        [row for row in rows if row.question in test],
    )


def one(
    options: argparse.Namespace, words: Sequence[str], rows: Sequence[Trajectory], seed: int
) -> tuple[float, dict[str, float]]:
    """Step AUC on the test of one run, and the weights of the domains."""
    training, meta, test = parts(rows, options.trouble, seed, options.meta)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_trajectories(folder / "train.jsonl", training)
        save_trajectories(folder / "meta.jsonl", meta)
        given = [
            *("data.format=canonical", "data.meta_share=0", f"data.root={folder}"),
            *("data.train=[train.jsonl]", "data.meta=[meta.jsonl]", "baseline=false"),
            *("model.backbone=" + options.backbone, 'model.step_marker="\\n\\n"'),
            *(f"model.layers=[{options.layer}]", f"seed={seed}", f"out={folder / 'run'}"),
            *("checkpoint_every=0", "observe.solutions=0", "observe.samples=0"),
            *options.words,
            *words,
        ]
        config = load_config("processbench", given)
        config.validate_every = config.steps
        with open_run(folder / "run", config, resume=False, overwrite=False) as run:
            engine = build(config, run).engine(config, folder / "run")
            engine.config.progress = None
            engine.run()
            scores = engine.lower.module.step_logits(test)
    pairs = [
        (score, label)
        for row, of_row in zip(test, scores, strict=True)
        for score, label in zip(of_row, row.step_labels or (), strict=True)
        if label is not None
    ]
    return auc([score for score, _ in pairs], [label == 1 for _, label in pairs]), engine.weights()


def main() -> None:
    """Runs all ways and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="with gsm8k.json and math.json")
    parser.add_argument("--backbone", required=True, help="a folder of pretrained weights")
    parser.add_argument("--layer", type=int, default=18)
    parser.add_argument("--trouble", choices=("none", "shuffled", "inverted"), default="inverted")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed; for tuning, 100")
    parser.add_argument("--meta", type=int, default=60, help="problems of the meta set")
    parser.add_argument("--most", type=int, help="right, and wrong, solutions of a file")
    parser.add_argument("--characters", type=int, help="leave out longer solutions")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--words", nargs="*", default=[], help="key=value words of every run")
    options = parser.parse_args()
    logging.getLogger("dreamprm").setLevel(logging.ERROR)
    rows = solutions(Path(options.root), options.most, options.characters)
    found: dict[str, np.ndarray] = {}
    weights: dict[str, list[dict[str, float]]] = {}
    for name in options.ways:
        seeds = range(options.first, options.first + options.seeds)
        runs = [one(options, WAYS[name], rows, seed) for seed in seeds]
        found[name] = np.array([value for value, _ in runs])
        weights[name] = [of_run for _, of_run in runs]
        for seed, (value, of_run) in zip(seeds, runs, strict=True):
            shown = {domain: round(weight, 2) for domain, weight in of_run.items()}
            print(f"{name}, seed {seed}: {value:.3f} {shown or ''}", file=sys.stderr)
    print(table(["weights", "step AUC", "to uniform", "p"], compared(found)))
    domains = sorted({domain for of in weights.values() for domain in of[0]} - {"meta"})
    lines = []
    for name, of_seeds in weights.items():
        if name in WAYS and "weighting=domain_table" in WAYS[name]:
            means = [f"{np.mean([w[d] for w in of_seeds]):.2f}" for d in domains]
            clean = [d for d in domains if d not in TROUBLED]
            below = sum(
                max(w[d] for d in TROUBLED) < min(w[d] for d in clean) for w in of_seeds
            )  # fmt: skip
            lines.append([name, *means, f"{below} of {len(of_seeds)}"])
    print("\n" + table(["mean weight", *domains, "troubled below clean"], lines))


def compared(found: dict[str, np.ndarray]) -> list[list[Any]]:
    """A row for every way."""
    rows = []
    for name, values in found.items():
        row = [name, interval(values), "", ""]
        if name != "uniform" and "uniform" in found and len(values) > 1:
            apart = values - found["uniform"]
            row[2:] = [interval(apart), f"{stats.ttest_rel(values, found['uniform']).pvalue:.2g}"]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
