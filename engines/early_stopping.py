"""When a run has stopped getting better."""

from __future__ import annotations

import math

from dreamprm.errors import UserError


class EarlyStopping:
    """Says when a metric has stopped getting better; betty's reads an attribute it never sets."""

    def __init__(self, metric: str, mode: str, tolerance: int) -> None:
        self.metric = metric
        self.sign = 1.0 if mode == "min" else -1.0
        self.tolerance = tolerance
        self.best = float("inf")
        self.since_best = 0

    def __call__(self, stats: dict[str, float]) -> bool:
        """Takes the numbers of one validation; True when it is time to stop."""
        if self.metric not in stats:
            raise UserError(
                f"the metric of early stopping, {self.metric!r}, is not among the numbers of the "
                f"validation: {', '.join(sorted(stats)) or 'it gave none'}"
            )
        if math.isnan(stats[self.metric]):
            # It would count for one that has not got better.
            raise FloatingPointError(f"the metric of early stopping, {self.metric!r}, is nan")
        value = self.sign * stats[self.metric]
        if value < self.best:
            self.best, self.since_best = value, 0
        else:
            self.since_best += 1
        return self.reached

    @property
    def reached(self) -> bool:
        """Whether it is time to stop."""
        return self.since_best >= self.tolerance
