"""Step metrics of one data set: by domain and in total, with bootstrap intervals over solutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.evaluation.accuracy import mean
from dreamprm.evaluation.result import Estimate, Judging, ModelSteps, StepNumbers
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

METRICS = [field.name for field in fields(StepNumbers) if field.type == "Estimate"]
# Metrics whose mean over domains is given beside the one over all steps.
BY_DOMAIN = ("auc", "processbench_f1", "macro_f1")


def evaluate_steps(
    rows: Sequence[Trajectory], scores: Sequence[Sequence[float]], settings: Judging
) -> ModelSteps:
    """Every step metric of one model on one data set.

    Args:
        rows: solutions, each with its domain, some with step labels.
        scores: of every step, in (0, 1).
        settings: how they are judged.

    Raises:
        UserError: no step has a label, or ``threshold_domain`` is not there or has solutions of one
            kind only.
        FloatingPointError: a score is NaN.
    """
    members: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.has_labels:
            members.setdefault(row.domain, []).append(i)
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
        threshold = found.threshold
    domains = {name: _metrics(steps, threshold, settings) for name, steps in parts.items()}
    whole = part([i for indices in members.values() for i in indices])
    by_domain = {key: [getattr(d, key).value for d in domains.values()] for key in BY_DOMAIN}
    return ModelSteps(
        threshold,
        _metrics(whole, threshold, settings),
        domains,
        {key: mean([v for v in values if v is not None]) for key, values in by_domain.items()},
    )


def _metrics(steps: ScoredSteps, threshold: float, settings: Judging) -> StepNumbers:
    located = locate_errors(steps, threshold)

    def values(weights: Array) -> list[float]:
        """In the order of ``METRICS``."""
        return [
            auc(steps.scores, steps.right, weights[steps.solution]),
            *processbench(located, weights),
            *visualprocessbench(steps, weights, threshold),
            calibration_error(steps, weights, settings.bins),
            brier(steps, weights),
        ]

    found = values(np.ones(steps.solutions))
    draws = [
        values(weights)
        for chunk in bootstrap_counts(steps.solutions, settings.bootstrap, settings.seed)
        for weights in chunk
    ]
    samples = np.array(draws).reshape(-1, len(found))
    estimates = [
        Estimate(None, None, None) if math.isnan(value) else Estimate(value, *interval(column))
        for value, column in zip(found, samples.T, strict=True)
    ]
    return StepNumbers(
        len(set(steps.solution.tolist())),
        len(steps.scores),
        float(steps.right.mean()),
        processbench_best=best_threshold(steps),
        reliability=reliability(steps, settings.bins),
        **dict(zip(METRICS, estimates, strict=True)),
    )
