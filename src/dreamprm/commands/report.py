"""``dreamprm report``: a page on a run, or on several beside each other."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    report = commands.add_parser(
        "report", help="write a self-contained HTML page on a run, or one comparing several"
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="a folder written by train")
    report.add_argument(
        "--out",
        metavar="FILE",
        help="default: RUN/report.html; of several, comparison.html beside the first RUN",
    )
    report.add_argument(
        "--evaluation",
        metavar="FILE",
        help="what dreamprm evaluate --out wrote (default: RUN/evaluation.json, if it is there)",
    )
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Writes the pages, and says where they are."""
    from dreamprm.reporting import write_comparison, write_report

    if len(options.runs) == 1:
        print(write_report(options.runs[0], options.out, options.evaluation))
        return
    for folder in options.runs:
        print(write_report(folder))
    print(write_comparison(options.runs, options.out, options.evaluation))
