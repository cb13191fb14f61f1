"""``dreamprm score``: the scores of every step of solutions in a file."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands, add_existing, add_scoring


def add(commands: Commands) -> None:
    """Adds the command."""
    score = commands.add_parser("score", help="score every step of solutions in a file")
    score.add_argument("model", metavar="MODEL", help="a folder written by train, or its model/")
    score.add_argument("data", metavar="DATA", help="trajectories")
    score.add_argument(
        "--format",
        default="canonical",
        help="of DATA; auto: told by its first rows (default: canonical)",
    )
    add_scoring(score)
    score.add_argument("--out", metavar="FILE", help="JSON Lines (default: standard output)")
    add_existing(score, "a scoring", "FILE")
    score.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Scores."""
    from dreamprm.scoring.files import score_file

    score_file(
        options.model,
        options.data,
        options.out,
        format=options.format,
        images=options.images,
        max_tokens=options.max_tokens,
        resume=options.resume,
        overwrite=options.overwrite,
    )
