"""``dreamprm convert``: a file of solutions in another format."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    convert = commands.add_parser(
        "convert", help="write a file of solutions in another format, and say what is lost"
    )
    convert.add_argument("source", metavar="IN", help="a file of solutions, or a folder of one")
    convert.add_argument("--to", required=True, metavar="FORMAT", help="the format to write")
    convert.add_argument("--out", required=True, metavar="FILE", help=".jsonl or .json")
    convert.add_argument(
        "--from",
        dest="format",
        default="auto",
        metavar="FORMAT",
        help="of IN (default: auto, told by its first rows)",
    )
    convert.add_argument("--images", default="require", help="require, skip_missing or ignore")
    convert.add_argument("--domain", metavar="NAME", help="of every row, in the place of its own")
    convert.add_argument("--overwrite", action="store_true", help="replace what is in FILE")
    convert.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Converts."""
    from pathlib import Path

    from dreamprm.data.convert import convert_file

    convert_file(
        Path(options.source),
        Path(options.out),
        options.to,
        format=options.format,
        images=options.images,
        domain=options.domain,
        overwrite=options.overwrite,
    )
