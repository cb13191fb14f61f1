"""The section on what came out: the numbers of ``summary.json``."""

from __future__ import annotations

from dataclasses import dataclass, field

from dreamprm.inference.tables import COLUMNS
from dreamprm.reporting.content import Cell, Number, Table, Tile, number
from dreamprm.reporting.run import Run

LABELS = {"domain_table": "learned weights", "uniform": "uniform weights"}
MEANINGS = {
    "best_of_n": "share of test questions whose best-scored solution is right",
    "random_pick": "the same for a solution drawn at random",
    "majority_vote": "the same for the most frequent answer",
    "best_source": "always the source that is right most often, known in hindsight only",
    "pass_at_n": "share of questions with a right solution: the ceiling",
    "step_auc": "chance that a right step scores above a wrong one",
}


@dataclass(frozen=True)
class OutcomeSection:
    """What ``summary.json`` says."""

    tiles: list[Tile] = field(default_factory=list)
    table: Table | None = None
    meanings: list[tuple[str, str]] = field(default_factory=list)


def outcome_section(run: Run) -> OutcomeSection:
    """Empty where the run has no test set, or has not ended."""
    runs = {n: r for n, r in (run.summary.get("runs") or {}).items() if isinstance(r, dict) and r}
    if not runs:
        return OutcomeSection()
    metrics = [key for key in COLUMNS if any(r.get(key) is not None for r in runs.values())]
    # Metrics downwards: so it fits a phone.
    rows: list[list[Cell]] = [
        [COLUMNS[key], *(number(numbers.get(key)) for numbers in runs.values())] for key in metrics
    ]
    header = ["metric", *(LABELS.get(name, name) for name in runs)]
    table = Table("On the test set", header, rows, key="summary")
    return OutcomeSection(_tiles(runs), table, [(COLUMNS[k], MEANINGS[k]) for k in metrics])


def _tiles(runs: dict[str, dict[str, float | None]]) -> list[Tile]:
    name, main = list(runs.items())[-1]
    plain = runs.get("uniform", {}) if name != "uniform" else {}
    tiles = []
    for key, title, against in (
        ("best_of_n", "best of N", ("random_pick", "majority_vote", "pass_at_n")),
        ("step_auc", "step AUC", ()),
    ):
        value = number(main.get(key))
        if not isinstance(value, Number):
            continue
        notes = [f"uniform weights {plain[key]:.3f}"] if plain.get(key) is not None else []
        notes += [f"{COLUMNS[k]} {main[k]:.3f}" for k in against if main.get(k) is not None]
        tiles.append(Tile(title, value, " · ".join(notes)))
    return tiles
