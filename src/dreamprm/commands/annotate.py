"""``dreamprm annotate``: step labels by sampling solutions and completions of their prefixes."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands, add_existing, add_overrides


def add(commands: Commands) -> None:
    """Adds the command."""
    annotate = commands.add_parser(
        "annotate", help="label the steps of sampled solutions by how often they end right"
    )
    annotate.add_argument("config", metavar="CONFIG", help="a path, or annotate, the shipped one")
    add_overrides(annotate)
    annotate.add_argument("--out", metavar="FILE", help="JSON Lines; the same as out=FILE")
    annotate.add_argument(
        "--dry-run", action="store_true", help="print what it would cost, and stop"
    )
    add_existing(annotate, "an annotation", "FILE")
    annotate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Annotates."""
    from dreamprm.annotation.annotate import annotate
    from dreamprm.annotation.config import load_annotation_config

    overrides = list(options.overrides)
    if options.out is not None:
        overrides.append(f"out={options.out}")
    config = load_annotation_config(options.config, overrides)
    annotate(config, options.resume, options.overwrite, options.dry_run)
    if not options.dry_run:
        print(f"The solutions and their labels are in {config.out}")
