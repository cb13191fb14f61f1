"""``dreamprm hypergradients``: the methods, how faithful each is and what it costs."""

from __future__ import annotations

import argparse
import logging

from dreamprm.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    methods = commands.add_parser(
        "hypergradients",
        help="list the hypergradient methods and measure how faithful and costly each one is",
    )
    methods.add_argument(
        "overrides",
        nargs="*",
        metavar="METHOD|key=value",
        help="names or solver+product (default: all names), options for those that have them, and "
        "plugins=[FILE.py] with methods of your own",
    )
    methods.add_argument("--list", action="store_true", help="list them only, do not measure")
    methods.add_argument("--json", action="store_true", help="print JSON instead of tables")
    methods.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the tables."""
    import json
    from dataclasses import asdict

    from dreamprm.config_reading import read_options
    from dreamprm.hypergradients import METHODS
    from dreamprm.hypergradients.catalogue import describe
    from dreamprm.inference.tables import method_tables
    from dreamprm.task_modules import load_plugins

    logging.getLogger("dreamprm").setLevel(logging.WARNING)  # the tables say what was chosen
    values = read_options([word for word in options.overrides if "=" in word])
    load_plugins(values.pop("plugins", []))
    names = [word for word in options.overrides if "=" not in word] or list(METHODS)
    rows = describe(names, values)
    if not options.list:
        from dreamprm.tasks.prm.comparison import measure

        measure(rows, progress="hypergradients")
    dicts = [asdict(row) for row in rows]
    print(json.dumps(dicts, indent=2) if options.json else method_tables(dicts))
