"""``dreamprm demo`` and ``dreamprm train``: a reward model and its domain weights."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands, add_existing, add_overrides


def add(commands: Commands) -> None:
    """Adds the commands."""
    demo = commands.add_parser(
        "demo", help="train on built-in domains of known quality and print what was learned"
    )
    demo.set_defaults(config="demo")
    train = commands.add_parser("train", help="train a reward model and its domain weights")
    train.add_argument("config", metavar="CONFIG", help="a path, or the name of a shipped config")
    for command in (demo, train):
        add_overrides(command)
        command.add_argument("--out", metavar="DIR", help="the run directory; the same as out=DIR")
        add_existing(command, "a run", "DIR")
        command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Trains, and prints the table of the run."""
    from dreamprm.run_directory import refuse_many_processes

    refuse_many_processes()  # before the seconds that the imports below take
    from transformers.utils.logging import disable_progress_bar

    from dreamprm.config import load_config
    from dreamprm.engines.prm import train
    from dreamprm.inference.tables import summary_table
    from dreamprm.tasks.prm.words import WORDS

    overrides = list(options.overrides)
    if options.out is not None:
        overrides.append(f"out={options.out}")
    config = load_config(options.config, overrides)
    disable_progress_bar()  # of every save; the run has its own
    summary = train(config, resume=options.resume, overwrite=options.overwrite)
    print(summary_table(summary, WORDS))
    print(f"\nThe run is in {config.out}; look at {config.out}/report.html")
