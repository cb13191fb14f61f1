"""The tables that a run prints."""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "step_auc": "step AUC",
    "best_of_n": "best of N",
    "random_pick": "random pick",
    "best_source": "best source",
    "majority_vote": "majority vote",
    "pass_at_n": "pass@N",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns in line, in Markdown; the first one to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def join(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1])] + [c.rjust(w) for c, w in others])} |"

    ruler = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([join(header), ruler, *map(join, rows)])


def summary_table(summary: dict[str, Any]) -> str:
    """The final tables of a run: the learned weights, and the reward models beside each other."""
    parts = []
    if summary["weights"]:
        qualities = summary["qualities"]
        rows = [
            [name, *([qualities[name]] if qualities else []), f"{weight:.2f}"]
            for name, weight in sorted(summary["weights"].items(), key=lambda item: -item[1])
        ]
        parts.append(
            table(["domain", *(["known quality"] if qualities else []), "learned weight"], rows)
        )
    runs = {name: numbers for name, numbers in summary["runs"].items() if numbers}
    if runs:
        columns = [key for key in COLUMNS if any(r.get(key) is not None for r in runs.values())]
        labels = {"domain_table": f"learned ({summary['meta_loss']})"}
        rows = [
            [labels.get(name, name)]
            + ["–" if numbers[key] is None else f"{numbers[key]:.3f}" for key in columns]
            for name, numbers in runs.items()
        ]
        parts.append(table(["weights", *(COLUMNS[key] for key in columns)], rows))
    return "\n\n".join(parts)
