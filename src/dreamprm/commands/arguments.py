"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from typing import Any, Protocol


class Commands(Protocol):
    """What ``argparse.ArgumentParser.add_subparsers`` gives."""

    def add_parser(self, name: str, **keywords: Any) -> argparse.ArgumentParser:
        """A parser for one command."""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """``key=value`` words."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values")


def add_existing(parser: argparse.ArgumentParser, what: str, where: str) -> None:
    """``--resume`` and ``--overwrite``.

    Args:
        parser: of the command.
        what: it makes, with its article.
        where: the name of the place that it is written to.
    """
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help=f"continue {what} that was interrupted, if any"
    )
    existing.add_argument("--overwrite", action="store_true", help=f"replace what is in {where}")


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """``--images`` and ``--max-tokens``."""
    parser.add_argument("--images", default="require", help="require, skip_missing or ignore")
    parser.add_argument(
        "--max-tokens", type=int, default=8192, help="per batch, with padding (default: 8192)"
    )
