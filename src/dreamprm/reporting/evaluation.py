"""What ``dreamprm evaluate --out`` writes, read into the few things that a report shows of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamprm.data.rows import need
from dreamprm.errors import UserError

EVALUATION_FILE = "evaluation.json"
SCHEMA = "dreamprm-evaluation-1"
STEP_METRICS = {
    "auc": "AUC",
    "processbench_f1": "first error located, F1 (ProcessBench)",
    "processbench_error_accuracy": "first error located, of solutions with one",
    "processbench_correct_accuracy": "no error found, of solutions without one",
    "macro_f1": "macro F1 (VisualProcessBench)",
    "f1_right": "F1 of right steps",
    "f1_wrong": "F1 of wrong steps",
    "ece": "expected calibration error",
    "brier": "Brier score",
}


@dataclass(frozen=True)
class Estimate:
    """A number, and the bounds of its confidence interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


Curve = dict[int, Estimate]  # by N


@dataclass(frozen=True)
class Picks:
    """Best of N on one set of questions.

    Attributes:
        name: of the set.
        questions: how many.
        baselines: what needs no model, by name.
        models: by model and rule.
        comparisons: (first, second, difference, McNemar's p) by the first rule.
    """

    name: str
    questions: int
    baselines: dict[str, Curve]
    models: dict[str, dict[str, Curve]]
    comparisons: Sequence[tuple[str, str, Estimate, float]] = ()


@dataclass(frozen=True)
class StepNumbers:
    """Step metrics of one model on one set of solutions.

    Attributes:
        total: by metric, over all steps.
        reliability: the mean score, the mean label and the count of every bin that is not empty.
        domains: the same as ``total``, by domain.
    """

    total: dict[str, Estimate]
    reliability: Sequence[tuple[float, float, int]]
    domains: dict[str, dict[str, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A whole file.

    Attributes:
        models: their names.
        picks: for every set of questions.
        steps: for every set of solutions, its name and the numbers of every model.
        confidence: of the intervals; None where there are none.
    """

    models: list[str]
    picks: list[Picks]
    steps: list[tuple[str, dict[str, StepNumbers]]]
    confidence: float | None = None


def read_evaluation(path: Path) -> Evaluation:
    """Reads a file of ``dreamprm evaluate``.

    Raises:
        UserError: there is none, or it is something else.
    """
    if not path.is_file():
        raise UserError(f"there is no evaluation {path}; dreamprm evaluate --out writes one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = found.get("schema") if isinstance(found, dict) else None
        raise UserError(f"{path}: schema is {schema!r}, expected {SCHEMA!r}")
    where = str(path)
    settings = need(found, "settings", dict, where)
    rules = need(settings, "aggregations", list, where)
    return Evaluation(
        models=[str(name) for name in need(found, "models", list, where)],
        picks=[
            _picks(row, str(rules[0]) if rules else "", f"{where}: selection {i}")
            for i, row in enumerate(need(found, "selection", list, where))
        ],
        steps=[
            _steps(row, f"{where}: steps {i}")
            for i, row in enumerate(need(found, "steps", list, where))
        ],
        confidence=settings.get("confidence") if settings.get("bootstrap") else None,
    )


def _picks(row: Any, rule: str, where: str) -> Picks:
    _object(row, where)
    ns = [int(n) for n in need(row, "n", list, where)]

    def curves(found: dict[str, Any]) -> dict[str, Curve]:
        return {name: _curve(_object(value, where), ns, where) for name, value in found.items()}

    models = need(row, "models", dict, where)
    return Picks(
        name=need(row, "name", str, where),
        questions=need(row, "questions", int, where),
        baselines=curves(need(row, "baselines", dict, where)),
        models={m: curves(need(v, "rules", dict, where)) for m, v in models.items()},
        comparisons=[
            (
                need(pair, "first", str, where),
                need(pair, "second", str, where),
                _estimate(pair, "difference", where),
                need(pair, "p_mcnemar", (int, float), where),
            )
            for pair in need(row, "comparisons", list, where)
            if pair.get("rule") == rule
        ],
    )


def _curve(found: dict[str, Any], ns: list[int], where: str) -> Curve:
    columns = [need(found, key, list, where) for key in ("accuracy", "low", "high")]
    if any(len(column) != len(ns) for column in columns):
        raise UserError(f"{where}: expected {len(ns)} accuracies, one for each N")
    return {n: Estimate(*column) for n, *column in zip(ns, *columns, strict=True)}


def _steps(row: Any, where: str) -> tuple[str, dict[str, StepNumbers]]:
    _object(row, where)
    models = need(row, "models", dict, where)
    return need(row, "name", str, where), {
        model: StepNumbers(
            total=_metrics(need(found, "total", dict, where), where),
            reliability=[
                (entry["score"], entry["label"], int(entry["count"]))
                for entry in need(found["total"], "reliability", list, where)
                if entry.get("count")
            ],
            domains={
                name: _metrics(_object(numbers, where), where)
                for name, numbers in need(found, "domains", dict, where).items()
            },
        )
        for model, found in models.items()
    }


def _metrics(found: dict[str, Any], where: str) -> dict[str, Estimate]:
    return {
        label: _estimate(found[name], "value", where)
        for name, label in STEP_METRICS.items()
        if isinstance(found.get(name), dict) and found[name].get("value") is not None
    }


def _estimate(found: dict[str, Any], key: str, where: str) -> Estimate:
    value = need(found, key, (int, float), where)
    return Estimate(value, found.get("low"), found.get("high"))


def _object(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"{where} is {type(found).__name__}, expected an object")
    return found
