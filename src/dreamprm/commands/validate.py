"""``dreamprm validate``: what is wrong with data, and what they look like."""

from __future__ import annotations

import argparse

from dreamprm.commands.arguments import Commands

ROLES = ("train", "meta", "test")


def add(commands: Commands) -> None:
    """Adds the command."""
    validate = commands.add_parser(
        "validate", help="check every row of data, and training, meta and test sets for leaks"
    )
    validate.add_argument("data", nargs="*", metavar="DATA", help="files, patterns or hub:NAME")
    for role, what in zip(
        ROLES, ("solutions to train on", "of the meta set", "questions with candidates"),
        strict=True,
    ):  # fmt: skip
        validate.add_argument(f"--{role}", nargs="+", default=[], metavar="DATA", help=what)
    validate.add_argument(
        "--format",
        default="canonical",
        help="of DATA and --train; auto: told by the first rows (default: canonical)",
    )
    validate.add_argument("--meta-format", help="of --meta (default: as --format)")
    validate.add_argument("--images", default="require", help="require, skip_missing or ignore")
    validate.add_argument("--json", action="store_true", help="print JSON instead of tables")
    validate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Checks, prints the report, and fails where something must be fixed."""
    import json

    from dreamprm.data.formats import AUTO, FORMATS, IMAGE_CHOICES, find_format
    from dreamprm.data.leaks import as_json, check_sets
    from dreamprm.data.sources import expand
    from dreamprm.data.validation import Images, check_file
    from dreamprm.errors import UserError, unknown_name
    from dreamprm.inference.tables import validation_tables
    from dreamprm.progress import progress_bar

    formats = {role: options.format for role in ("data", "train")} | {"test": "canonical"}
    formats["meta"] = options.meta_format or options.format
    for format in formats.values():
        if format not in (*FORMATS, AUTO):
            raise UserError(unknown_name("format", format, [*FORMATS, AUTO]))
    if options.images not in IMAGE_CHOICES:
        raise UserError(unknown_name("choice of images", options.images, IMAGE_CHOICES))
    named = [
        (path, role)
        for role in ("data", *ROLES)
        for path in expand(getattr(options, role), "DATA" if role == "data" else f"--{role}")
    ]
    if not named:
        raise UserError("there is nothing to validate: give files, or --train, --meta and --test")
    images = Images(options.images)
    files = []
    for path, role in named:
        with progress_bar(f"validate {path.name}", None, "row") as bar:
            format = find_format(formats[role], path).name
            for report in check_file(path, role, format, images):
                bar.update(report.rows - bar.n)
        files.append(report)
    found = as_json(files, check_sets(files))
    print(json.dumps(found, indent=2) if options.json else validation_tables(found))
    if found["errors"]:
        lists = [*(file["findings"] for file in found["files"]), found["sets"]]
        first = next(f for findings in lists for f in findings if f["severity"] == "error")
        at = f"{first['places'][0]}: " if first["places"] else ""
        more = f" ({found['errors']} errors in all, above)" if found["errors"] > 1 else ""
        raise UserError(f"{at}{first['message']}{more}")
