"""``dreamprm select``: the best candidate of every question."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands, add_existing, add_scoring


def add(commands: Commands) -> None:
    """Adds the command."""
    select = commands.add_parser("select", help="pick the best of every question's candidates")
    select.add_argument("model", metavar="MODEL", help="a folder written by train, or its model/")
    select.add_argument("data", metavar="DATA", help="questions with candidates, or trajectories")
    select.add_argument(
        "--format",
        default="canonical",
        help="of DATA; auto: told by its first rows (default: canonical)",
    )
    select.add_argument(
        "--aggregation",
        default="mean_logit",
        metavar="NAME",
        help="mean_logit (default), mean, min, product, last, max, vote, or vote+NAME",
    )
    select.add_argument("--n", type=int, help="the first so many candidates (default: all)")
    add_scoring(select)
    select.add_argument("--out", metavar="FILE", required=True, help="JSON Lines")
    add_existing(select, "a selection", "FILE")
    select.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Selects."""
    from dreamprm.scoring.selecting import select_file

    select_file(
        options.model,
        options.data,
        options.out,
        aggregation=options.aggregation,
        n=options.n,
        format=options.format,
        images=options.images,
        max_tokens=options.max_tokens,
        resume=options.resume,
        overwrite=options.overwrite,
    )
