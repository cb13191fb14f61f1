"""``dreamprm validate``: what is wrong with data, and what they look like."""

from __future__ import annotations

import argparse
from typing import Any

from dreamprm.commands.arguments import Commands
from dreamprm.tables import table

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


def validation_tables(report: dict[str, Any]) -> str:
    """What is wrong with data, and what they hold.

    Args:
        report: of ``dreamprm.data.validation.as_json``.
    """
    parts = []
    for file in report["files"]:
        role = "" if file["set"] == "data" else f" ({file['set']})"
        parts.append("\n".join([f"{file['path']}{role}: {file['rows']:,} rows", *_found(file)]))
        if file["domains"]:
            parts += _domain_tables(file["domains"], report["edges"])
    if report["sets"]:
        parts.append("\n".join(["The sets:", *_found({"findings": report["sets"]})]))
    parts.append(f"{report['errors']:,} errors, {report['warnings']:,} warnings")
    return "\n\n".join(parts)


def _found(of: dict[str, Any]) -> list[str]:
    lines = []
    for finding in of["findings"]:
        times = f"{finding['count']:,} × " if finding["count"] > 1 else ""
        lines.append(f"  {finding['severity']}: {times}{finding['message']}")
        # The file stands above; what is left is :line or row n, or nothing of the file as a whole.
        whole = of.get("path", "")
        places = [place.removeprefix(whole).removeprefix(": ") for place in finding["places"]]
        if any(places):
            more = ", …" if finding["count"] > len(places) else ""
            lines.append(f"    at {', '.join(places)}{more}")
    return lines


def _domain_tables(domains: dict[str, Any], edges: dict[str, Any]) -> list[str]:
    def counts(header: list[str], key: str, more: str | None = None) -> str:
        rows = []
        for name, domain in sorted(domains.items()):
            cells = domain[key] + ([domain[more]] if more else [])
            rows.append([name or "–", *(f"{cell:,}" for cell in cells)])
        return table(["domain", *header], rows)

    outcomes = ["solutions", "right", "wrong", "unknown"]
    tables = [
        table(
            ["domain", *outcomes],
            [[n or "–", *(f"{d[k]:,}" for k in outcomes)] for n, d in sorted(domains.items())],
        )
    ]
    if any(any(domain["labels"]) for domain in domains.values()):
        bins = len(next(iter(domains.values()))["labels"])
        header = [f"{b / bins:.1f}–{(b + 1) / bins:.1f}" for b in range(bins)]
        labels = counts([*header, "none"], "labels", "unlabelled")
        tables.append("Steps by label:\n" + labels)
    for key in ("steps", "characters"):
        upper = [f"≤ {edge:,}" for edge in edges[key]]
        upper[0] = f"{edges[key][0]}" if edges[key][0] == 0 else upper[0]
        header = [*upper, f"> {edges[key][-1]:,}"]
        tables.append(f"Solutions by {key}:\n" + counts(header, key))
    return tables
