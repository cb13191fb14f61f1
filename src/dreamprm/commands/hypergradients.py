"""``dreamprm hypergradients``: the methods, how faithful each is and what it costs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamprm.commands.arguments import Commands
from dreamprm.errors import UserError
from dreamprm.tables import table
from dreamprm.words import is_number


def add(commands: Commands) -> None:
    """Adds the command."""
    methods = commands.add_parser(
        "hypergradients",
        help="list the hypergradient methods and measure how faithful and costly each one is",
    )
    methods.add_argument(
        "overrides",
        nargs="*",
        metavar="CONFIG|METHOD|key=value",
        help="a config whose task they are measured on, after a few steps (default: the demo's); "
        "names or solver+product (default: all names); options for those that have them, "
        "plugins=[FILE.py] with methods of your own, and keys of CONFIG",
    )
    methods.add_argument("--list", action="store_true", help="list them only, do not measure")
    methods.add_argument("--json", action="store_true", help="print JSON instead of tables")
    methods.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the tables."""
    import json
    from dataclasses import asdict

    from dreamprm.config.plugins import load_plugins
    from dreamprm.config.reading import is_config, read_options
    from dreamprm.hypergradients import METHODS, resolve
    from dreamprm.hypergradients.catalogue import describe
    from dreamprm.tasks.comparison import brief_config

    logging.getLogger("dreamprm").setLevel(logging.WARNING)  # the tables say what was chosen
    given = [word for word in options.overrides if "=" in word]
    names = [word for word in options.overrides if "=" not in word]
    load_plugins(read_options(given).get("plugins", []))
    given = [word for word in given if not word.startswith("plugins=")]
    configs = [name for name in names if is_config(name)]
    if len(configs) > 1:
        raise UserError(f"{' and '.join(configs)} are configs, expected one at most")
    config = None
    if configs:
        names.remove(configs[0])
        # The task may register some of the methods, whose options are known then. None has a dot.
        brief_config(configs[0], [word for word in given if "." in word.partition("=")[0]])
        known = {key for name in names or METHODS for key in resolve(name).options}
        own = [word for word in given if word.partition("=")[0] in known]
        config = brief_config(configs[0], [word for word in given if word not in own])
        given = own
    rows = describe(names or list(METHODS), read_options(given))
    if not options.list:
        _measure(rows, config, Path(configs[0]).stem if configs else "")
    dicts = [asdict(row) for row in rows]
    print(json.dumps(dicts, indent=2) if options.json else method_tables(dicts))


def _measure(rows: Sequence[Any], config: Any, name: str) -> None:
    """Fills in what is measured on a task that has run for a few steps, or on the demo's model."""
    from dreamprm.hypergradients.comparison import measure
    from dreamprm.tasks.comparison import cases_of, run_briefly
    from dreamprm.tasks.prm.comparison import demo_briefly, demo_cases

    title = "hypergradients"
    if config is None:
        with demo_briefly(title) as engine:
            measure(rows, demo_cases(engine), title)
    else:
        with run_briefly(config, f"{title}: {name}") as engine:
            measure(rows, cases_of(engine, name), title)


def method_tables(rows: list[dict[str, Any]]) -> str:
    """The hypergradient methods, and what was measured of each.

    Args:
        rows: ``dreamprm.hypergradients.catalogue.Row``, as dicts.
    """
    measured = [row for row in rows if row["forwards"] is not None]
    header = ["method", "needs", "options", "paper", *(["forwards", "copies"] if measured else [])]
    lines = []
    for row in rows:
        options = ", ".join(f"{name}={_option(value)}" for name, value in row["options"].items())
        texts = [", ".join(row["needs"]), options, row["source"]]
        costs = [f"{row['forwards']:.1f}", f"{row['copies']:.1f}"] if measured else []
        lines.append([row["name"], *(text or "–" for text in texts), *costs])
    parts = [table(header, lines, texts=4)]
    if not measured:
        return parts[0]
    parts.append(
        "forwards: forward passes beyond v, by counted operations. copies: of the parameters held\n"
        "at once, v among them, by counted bytes."
    )
    tasks = dict.fromkeys(t for row in measured for t in (*row["cosine"], *row["notes"]))
    small = [task for task in tasks if task in ("ridge", "logistic")]
    for against, chosen in {
        "the inverse Hessian, at the lower optimum": small,
        "the same method with exact products in float64": [t for t in tasks if t not in small],
    }.items():
        titles = [f"{task}: {number}" for task in chosen for number in ("cosine", "error")]
        lines = [
            [row["name"]]
            + [
                f"{row[key][task]:{form}}" if task in row[key] else "–"
                for task in chosen
                for key, form in (("cosine", ".4f"), ("error", ".1e"))
            ]
            for row in rows
        ]
        parts += [f"Against {against}:", table(["method", *titles], lines)]
    parts += [
        f"{row['name']} on {task}: {note}" for row in rows for task, note in row["notes"].items()
    ]
    return "\n\n".join(parts)


def _option(value: Any) -> str:
    if value is None:
        return "auto"
    return f"{value:g}" if is_number(value) else str(value).lower()
