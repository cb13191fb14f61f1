"""The tables that a run prints."""

from __future__ import annotations

from typing import Any

from dreamprm.words import Words, is_number


def table(header: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """Columns in line, in Markdown; the first ``texts`` to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def join(cells: list[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(cells[:texts], widths, strict=False)]
        right = [c.rjust(w) for c, w in zip(cells[texts:], widths[texts:], strict=True)]
        return f"| {' | '.join(left + right)} |"

    rulers = ["-" * (w + 2) for w in widths[:texts]] + ["-" * (w + 1) + ":" for w in widths[texts:]]
    return "\n".join([join(header), "|".join(["", *rulers, ""]), *map(join, rows)])


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


def summary_table(summary: dict[str, Any], words: Words) -> str:
    """The final tables of a run: the learned weights, and the models beside each other.

    Args:
        summary: what ``summary.json`` holds.
        words: of the task.
    """
    parts = []
    if summary.get("weights"):
        qualities = summary.get("qualities") or {}
        rows = [
            [name, *([qualities[name]] if qualities else []), f"{weight:.2f}"]
            for name, weight in sorted(summary["weights"].items(), key=lambda item: -item[1])
        ]
        known = ["known quality"] if qualities else []
        parts.append(table([words.group, *known, "learned weight"], rows))
    runs = {name: numbers for name, numbers in summary["runs"].items() if numbers}
    if runs:
        columns = words.shown(runs.values())
        rows = [
            [_weighting(name, summary), *(_decimal(numbers.get(key)) for key in columns)]
            for name, numbers in runs.items()
        ]
        parts.append(table(["weights", *map(words.title, columns)], rows))
    return "\n\n".join(parts)


def _weighting(name: str, summary: dict[str, Any]) -> str:
    if name != "domain_table":
        return name.replace("_", " ")
    return f"learned ({summary['meta_loss']})" if summary.get("meta_loss") else "learned"


def _decimal(value: Any) -> str:
    return f"{value:.3f}" if is_number(value) else "–"


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
