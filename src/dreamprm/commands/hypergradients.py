"""``dreamprm hypergradients``: the methods, how faithful each is and what it costs."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from dreamprm.commands.arguments import Commands
from dreamprm.tables import table


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

    from dreamprm.config.plugins import load_plugins
    from dreamprm.config.reading import read_options
    from dreamprm.hypergradients import METHODS
    from dreamprm.hypergradients.catalogue import describe

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


def method_tables(rows: list[dict[str, Any]]) -> str:
    """The hypergradient methods, and what was measured of each.

    Args:
        rows: ``dreamprm.hypergradients.catalogue.Row``, as dicts.
    """
    measured = [row for row in rows if row["forwards"] is not None]
    header = ["method", "needs", "options", "paper", *(["forwards", "copies"] if measured else [])]
    lines = []
    for row in rows:
        options = ", ".join(
            f"{name}={'auto' if value is None else f'{value:g}'}"
            for name, value in row["options"].items()
        )
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
    for against, chosen in {
        "the inverse Hessian, at the lower optimum": [t for t in tasks if "prm" not in t],
        "the same method with exact products in float64, on the demo's model": [
            t for t in tasks if "prm" in t
        ],
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
