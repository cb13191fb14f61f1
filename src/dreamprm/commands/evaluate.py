"""``dreamprm evaluate``: best-of-N accuracy and step metrics of reward models, side by side."""

from __future__ import annotations

import argparse
from dataclasses import fields

from dreamprm.commands.arguments import Commands, add_scoring


def add(commands: Commands) -> None:
    """Adds the command."""
    evaluate = commands.add_parser(
        "evaluate",
        help="best-of-N accuracy and step metrics of reward models",
        description="Without --selection and --steps: on the test set of the first model's run.",
    )
    add_argument = evaluate.add_argument
    add_argument("models", nargs="+", metavar="MODEL", help="folders written by train")
    add_argument(
        "--selection",
        nargs="+",
        default=[],
        metavar="FILE",
        help="questions with candidates, or trajectories with outcomes",
    )
    add_argument(
        "--steps", nargs="+", default=[], metavar="FILE", help="trajectories with step labels"
    )
    for kind in ("selection", "steps"):
        add_argument(f"--{kind}-format", default="canonical", metavar="NAME", help="of the files")
    add_argument(
        "--aggregation",
        dest="aggregations",
        nargs="+",
        metavar="NAME",
        help="mean_logit, mean, min, product, last, max (default: all)",
    )
    add_argument("--bootstrap", type=int, default=1000, help="resamples (default: 1000)")
    add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    add_argument("--threshold", type=float, default=0.5, help="steps above are right (default 0.5)")
    add_argument(
        "--threshold-domain",
        metavar="DOMAIN",
        help="take the threshold that finds the first error best on this domain",
    )
    add_argument("--bins", type=int, default=10, help="of the reliability curve (default: 10)")
    add_argument("--examples", type=int, default=4, help="solutions of a kind (default: 4)")
    add_scoring(evaluate)
    add_argument("--out", metavar="FILE", help="all numbers, JSON")
    add_argument("--overwrite", action="store_true", help="replace what is in FILE")
    evaluate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Evaluates, and prints the tables."""
    from dreamprm.evaluation.evaluate import Settings, evaluate
    from dreamprm.evaluation.tables import evaluation_tables

    given = {key: value for key, value in vars(options).items() if value is not None}
    settings = Settings(**{f.name: given[f.name] for f in fields(Settings) if f.name in given})
    result = evaluate(
        options.models,
        options.selection,
        options.steps,
        settings,
        out=options.out,
        overwrite=options.overwrite,
    )
    print(evaluation_tables(result))
