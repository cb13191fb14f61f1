"""``dreamprm demo`` and ``dreamprm train``: a run of any task."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands, add_existing, add_overrides


def add(commands: Commands) -> None:
    """Adds the commands."""
    demo = commands.add_parser(
        "demo", help="train on built-in domains of known quality and print what was learned"
    )
    demo.set_defaults(config="demo")
    train = commands.add_parser("train", help="run a task: a model and the weights of its data")
    train.add_argument("config", metavar="CONFIG", help="a path, or the name of a shipped config")
    for command in (demo, train):
        add_overrides(command)
        command.add_argument("--out", metavar="DIR", help="the run directory; the same as out=DIR")
        add_existing(command, "a run", "DIR")
        command.add_argument(
            "--print-config", action="store_true", help="print every key and value, and do not run"
        )
        command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Trains, and prints the table of the run."""
    from dreamprm.run_directory import refuse_many_processes

    refuse_many_processes()  # before the seconds that the imports below take
    from dreamprm.task_modules import load_config

    overrides = list(options.overrides)
    if options.out is not None:
        overrides.append(f"out={options.out}")
    config = load_config(options.config, overrides)
    if options.print_config:
        from dreamprm.config_reading import config_text

        print(config_text(config))
        return
    from transformers.utils.logging import disable_progress_bar

    from dreamprm.engines.run import train
    from dreamprm.inference.tables import summary_table
    from dreamprm.reporting.run import read_run

    disable_progress_bar()  # of every save; the run has its own
    summary = train(config, resume=options.resume, overwrite=options.overwrite)
    print(summary_table(summary, read_run(config.out).words))
    print(f"\nThe run is in {config.out}; look at {config.out}/report.html")
