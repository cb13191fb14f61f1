"""Step metrics of one data set: by domain and in total, with bootstrap intervals over solutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.evaluation.significance import bootstrap_counts, interval
from dreamprm.evaluation.step_metrics import (
    Array,
    ScoredSteps,
    auc,
    best_threshold,
    brier,
    calibration_error,
    locate_errors,
    processbench,
    reliability,
    scored_steps,
    visualprocessbench,
)

METRICS = (
    "auc",
    "processbench_error_accuracy",
    "processbench_correct_accuracy",
    "processbench_f1",
    "f1_right",
    "f1_wrong",
    "macro_f1",
    "ece",
    "brier",
)
# Metrics whose mean over domains is given beside the one over all steps.
BY_DOMAIN = ("auc", "processbench_f1", "macro_f1")


@dataclass(frozen=True)
class StepSettings:
    """How steps are judged.

    Attributes:
        threshold: a step scored above it is called right.
        threshold_domain: take the threshold with the highest ProcessBench F1 on this domain.
        bins: of the reliability curve.
        bootstrap: resamples of the solutions.
        seed: of the resamples.
    """

    threshold: float = 0.5
    threshold_domain: str | None = None
    bins: int = 10
    bootstrap: int = 1000
    seed: int = 0


def evaluate_steps(
    rows: Sequence[Trajectory],
    scores: Sequence[Sequence[float]],
    settings: StepSettings,
    default_domains: Sequence[str],
) -> dict[str, Any]:
    """Every step metric of one model on one data set.

    Args:
        rows: solutions, some with step labels.
        scores: of every step, in (0, 1).
        settings: how they are judged.
        default_domains: the domain of each solution that names none.

    Returns:
        ``threshold``; ``total``, over all steps; ``domains``, by name; ``mean``, the means over
        domains of ``BY_DOMAIN``. See docs/evaluation.md.

    Raises:
        UserError: no step has a label, or ``threshold_domain`` is not there or has solutions of one
            kind only.
        FloatingPointError: a score is NaN.
    """
    names = [row.domain or other for row, other in zip(rows, default_domains, strict=True)]
    members: dict[str, list[int]] = {}
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        if row.has_labels:
            members.setdefault(name, []).append(i)
    if not members:
        raise UserError("no step has a label, which step metrics are of")

    def part(indices: Sequence[int]) -> ScoredSteps:
        return scored_steps([scores[i] for i in indices], [rows[i].step_labels for i in indices])

    parts = {name: part(indices) for name, indices in members.items()}
    threshold = settings.threshold
    if settings.threshold_domain is not None:
        if settings.threshold_domain not in parts:
            raise UserError(unknown_name("domain", settings.threshold_domain, parts))
        found = best_threshold(parts[settings.threshold_domain])
        if found is None:
            raise UserError(
                f"domain {settings.threshold_domain!r} has solutions with an error only, or "
                "without: no threshold can be set on it"
            )
        threshold = found
    domains = {name: _metrics(steps, threshold, settings) for name, steps in parts.items()}
    return {
        "threshold": threshold,
        "total": _metrics(
            part([i for indices in members.values() for i in indices]), threshold, settings
        ),
        "domains": domains,
        "mean": {
            key: _mean([domain[key]["value"] for domain in domains.values()]) for key in BY_DOMAIN
        },
    }


def _metrics(steps: ScoredSteps, threshold: float, settings: StepSettings) -> dict[str, Any]:
    located = locate_errors(steps, threshold)

    def values(weights: Array) -> list[float]:
        return [
            auc(steps.scores, steps.right, weights[steps.solution]),
            *processbench(located, weights),
            *visualprocessbench(steps, weights, threshold),
            calibration_error(steps, weights, settings.bins),
            brier(steps, weights),
        ]

    draws = [
        values(weights)
        for chunk in bootstrap_counts(steps.solutions, settings.bootstrap, settings.seed)
        for weights in chunk
    ]
    samples = np.array(draws).reshape(-1, len(METRICS))
    found: dict[str, Any] = {
        "solutions": len(set(steps.solution.tolist())),
        "steps": len(steps.scores),
        "share_right": float(steps.right.mean()),
    }
    once = np.ones(steps.solutions)
    for name, value, column in zip(METRICS, values(once), samples.T, strict=True):
        known = not math.isnan(value)
        limits = interval(column) if known else None
        found[name] = {
            "value": value if known else None,
            "low": limits[0] if limits else None,
            "high": limits[1] if limits else None,
        }
    best = best_threshold(steps)
    found["processbench_best"] = (
        None
        if best is None
        else {"threshold": best, "f1": processbench(locate_errors(steps, best), once)[2]}
    )
    found["reliability"] = reliability(steps, settings.bins)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
