"""The section on what came out: the numbers of ``summary.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dreamprm.reporting.content import Cell, Number, Table, Tile, number
from dreamprm.reporting.run import Run
from dreamprm.words import Words, is_number

LEARNED = {"domain_table": "learned weights", "label_table": "learned labels"}
TILES = 2  # of a task that does not say which


@dataclass(frozen=True)
class OutcomeSection:
    """What ``summary.json`` says; where it says nothing, ``note`` says why."""

    tiles: list[Tile] = field(default_factory=list)
    table: Table | None = None
    meanings: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""


def outcome_section(run: Run) -> OutcomeSection:
    """A note alone where the run has no numbers, or has not ended."""
    runs = {n: r for n, r in (run.summary.get("runs") or {}).items() if isinstance(r, dict) and r}
    words = run.words
    metrics = words.shown(runs.values())
    if not metrics:
        return OutcomeSection(note=_why_none(run))
    # Metrics downwards: so it fits a phone.
    rows: list[list[Cell]] = [
        [words.title(key), *(value_of(numbers, key) for numbers in runs.values())]
        for key in metrics
    ]
    labels = LEARNED | {"uniform": words.plain}
    header = ["metric", *(labels.get(name, name.replace("_", " ")) for name in runs)]
    table = Table(
        f"On the {words.test}" if words.test else "At the end", header, rows, key="summary"
    )
    known = [words.metrics[key] for key in metrics if key in words.metrics]
    meanings = [(metric.title, metric.meaning) for metric in known if metric.meaning]
    return OutcomeSection(_tiles(runs, metrics, words), table, meanings)


def value_of(numbers: dict[str, Any], key: str) -> Cell:
    """A metric as a cell; a dash where it is no number."""
    value = numbers.get(key)
    return number(value if is_number(value) else None)


def _why_none(run: Run) -> str:
    if run.summary:
        data = run.config.get("data")
        has_keys = isinstance(data, dict) and "test_share" in data
        remedy = ": data.test or data.test_share gives it one" if has_keys else ""
        return f"The run has no {run.words.test or 'numbers'}{remedy}."
    if run.finished:
        return "The run has ended; what it logged is below."
    if run.trained:
        return "The training has ended; the summary is not written yet."
    return "The run has not ended, so it has no table yet; the training so far is below."


def _tiles(runs: dict[str, dict[str, Any]], metrics: list[str], words: Words) -> list[Tile]:
    name, main = list(runs.items())[-1]
    plain = runs.get("uniform", {}) if name != "uniform" else {}
    tiles = []
    for key in words.tiles or metrics[:TILES]:
        value = value_of(main, key)
        if not isinstance(value, Number):
            continue
        others = [(words.title(k), main.get(k)) for k in words.against.get(key, ())]
        beside = [(words.plain, plain.get(key)), *others]
        notes = [f"{title} {found:.3f}" for title, found in beside if is_number(found)]
        tiles.append(Tile(words.title(key), value, " · ".join(notes)))
    return tiles
