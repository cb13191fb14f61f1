"""``dreamprm demo`` and ``dreamprm train``: a run of any task."""

from __future__ import annotations

import argparse
from typing import Any

from dreamprm.commands.arguments import Commands, add_existing, add_overrides
from dreamprm.config.reading import shipped_runs
from dreamprm.tables import table
from dreamprm.words import Words, is_number


def add(commands: Commands) -> None:
    """Adds the commands."""
    demo = commands.add_parser(
        "demo", help="train on built-in domains of known quality and print what was learned"
    )
    demo.set_defaults(config="demo")
    train = commands.add_parser("train", help="run a task: a model and the weights of its data")
    train.add_argument("config", metavar="CONFIG", help="a path, or the name of a shipped config")
    train.add_argument("--list", action=_List, nargs=0, help="name the shipped configs, and end")
    for command in (demo, train):
        add_overrides(command)
        command.add_argument("--out", metavar="DIR", help="the run directory; the same as out=DIR")
        add_existing(command, "a run", "DIR")
        command.add_argument(
            "--print-config", action="store_true", help="print every key and value, and do not run"
        )
        command.set_defaults(run=run)


class _List(argparse.Action):
    """Prints the shipped configs and ends, whatever else is asked for, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = shipped_runs()
        width = max(map(len, found))
        for name, line in found.items():
            print(f"{name:{width}}  {line}")
        parser.exit()


def run(options: argparse.Namespace) -> None:
    """Trains, and prints the table of the run."""
    from dreamprm.run_directory.opening import refuse_many_processes

    refuse_many_processes()  # before the seconds that the imports below take
    from dreamprm.tasks.modules import load_config

    overrides = list(options.overrides)
    if options.out is not None:
        overrides.append(f"out={options.out}")
    config = load_config(options.config, overrides)
    if options.print_config:
        from dreamprm.config.reading import config_text

        print(config_text(config))
        return
    from transformers.utils.logging import disable_progress_bar

    from dreamprm.reporting.run import read_run
    from dreamprm.tasks.modules import train

    disable_progress_bar()  # of every save; the run has its own
    summary = train(config, resume=options.resume, overwrite=options.overwrite)
    run = read_run(config.out)
    print(summary_table(summary, run.words, run.learned))
    print(f"\nThe run is in {config.out}; look at {config.out}/report.html")


def summary_table(summary: dict[str, Any], words: Words, learned: bool = True) -> str:
    """The final tables of a run: the learned weights, and the models beside each other.

    Args:
        summary: what ``summary.json`` holds.
        words: of the task.
        learned: whether an upper level has learned the weights.
    """
    parts = []
    if summary.get("weights"):
        qualities = summary.get("qualities") or {}
        rows = [
            [name, *([qualities.get(name, "–")] if qualities else []), f"{weight:.2f}"]
            for name, weight in sorted(summary["weights"].items(), key=lambda item: -item[1])
        ]
        known = ["known quality"] if qualities else []
        weight = "learned weight" if learned else "weight"
        parts.append(table([words.group, *known, weight], rows))
    runs = {name: numbers for name, numbers in summary["runs"].items() if numbers}
    if runs:
        columns = words.shown(runs.values())
        rows = [
            [_weighting(name, summary, words), *(_decimal(numbers.get(key)) for key in columns)]
            for name, numbers in runs.items()
        ]
        first = "weights" if words.plain == Words.plain else "run"
        parts.append(table([first, *map(words.title, columns)], rows))
    return "\n\n".join(parts)


def _weighting(name: str, summary: dict[str, Any], words: Words) -> str:
    if name == "uniform":
        return name if words.plain == Words.plain else words.plain
    if name != "domain_table":
        return name.replace("_", " ")
    return f"learned ({summary['meta_loss']})" if summary.get("meta_loss") else "learned"


def _decimal(value: Any) -> str:
    return f"{value:.3f}" if is_number(value) else "–"
