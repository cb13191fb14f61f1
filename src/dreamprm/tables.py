"""Tables as text."""

from __future__ import annotations


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
