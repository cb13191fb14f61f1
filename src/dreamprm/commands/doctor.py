"""``dreamprm doctor``: what the installed torch differentiates wrongly, or not at all."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from platform import python_version

from dreamprm.commands.arguments import Commands
from dreamprm.errors import UserError

LIBRARIES = ("torch", "transformers", "betty-ml")
WIDTH = 90  # of a reason in the table


def add(commands: Commands) -> None:
    """Adds the command."""
    doctor = commands.add_parser(
        "doctor",
        help="check the second derivatives of the installed torch, operation by operation",
    )
    doctor.add_argument("--all", action="store_true", help="also what is right")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    doctor.add_argument("--device", default="cpu", help="as torch names it (default: cpu)")
    doctor.add_argument(
        "--dtype", default="float64", choices=("float64", "float32"), help="default: float64"
    )
    doctor.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the verdicts.

    Raises:
        UserError: there is no such device here.
        FloatingPointError: something is silently wrong.
    """
    import json
    from collections import Counter
    from dataclasses import asdict

    import torch

    from dreamprm.hypergradients.soundness import APART, REFUSED, RIGHT, WRONG, judge
    from dreamprm.hypergradients.zoo import operations
    from dreamprm.tables import table

    try:
        torch.zeros((), device=options.device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device is {options.device!r}: {reason}") from error
    zoo = operations()
    verdicts = list(judge(zoo, getattr(torch, options.dtype), options.device))
    shown = [v for v in verdicts if options.all or v.status != RIGHT]
    counts = Counter(v.status for v in verdicts)
    summary = {status: counts[status] for status in (RIGHT, REFUSED, APART, WRONG)}
    versions = {"python": python_version()} | {name: version(name) for name in LIBRARIES}
    if options.json:
        rows = [asdict(v) for v in shown]
        print(json.dumps({"versions": versions, "summary": summary, "rows": rows}, indent=2))
    else:
        lines = [
            [v.operation, v.product, v.status, _number(v.error), _short(v.reason)] for v in shown
        ]
        if lines:
            print(table(["operation", "product", "status", "error", "why"], lines, texts=5) + "\n")
        print(", ".join(f"{name} {number}" for name, number in versions.items()))
        counted = ", ".join(f"{number} {status}" for status, number in summary.items())
        print(f"{len(zoo)} operations in {options.dtype} on {options.device}: {counted}")
    wrong = [f"{v.operation} by {v.product}" for v in verdicts if v.status == WRONG]
    if wrong:
        raise FloatingPointError(f"silently wrong with this torch: {', '.join(wrong)}")


def _number(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _short(reason: str) -> str:
    return reason if len(reason) <= WIDTH else f"{reason[:WIDTH]}…"
