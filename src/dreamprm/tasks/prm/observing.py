"""What is looked at in every validation of a reward model: numbers, histograms and pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dreamprm.data.trajectory import SelectionQuestion, Trajectory, group_candidates
from dreamprm.evaluation.best_of_n import expected_best, sizes
from dreamprm.evaluation.step_metrics import auc
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.scoring.aggregation import aggregate
from dreamprm.tasks.prm.config import ObserveConfig
from dreamprm.tasks.prm.pictures import scored_solutions

DRAWN_FROM = 4096  # training solutions that those of the histograms are taken from, evenly
DOMAINS = 64  # with a histogram


@dataclass
class Observer:
    """Scores a fixed choice of solutions whenever it is asked, and keeps what was found.

    Attributes:
        meta: the meta set.
        questions: of which the selection is observed; all with right and wrong candidates.
        source: what these are of, ``"test"`` or ``"meta"``.
        by_domain: training solutions for the histograms.
        samples: how many solutions of the meta set are drawn.
    """

    meta: list[Trajectory]
    questions: list[SelectionQuestion] = field(default_factory=list)
    source: str = "test"
    by_domain: dict[str, list[Trajectory]] = field(default_factory=dict)
    samples: int = 0
    histograms: dict[str, list[float]] = field(default_factory=dict)
    _drawn: tuple[list[Trajectory], list[list[float]]] | None = None

    def look(self, model: ProcessRewardModel) -> dict[str, float]:
        """Scores, and gives the numbers of a validation.

        Returns:
            ``outcome_auc`` of the meta set, where it has both outcomes, and of the questions
            ``test_best_of_2``, ``test_best_of_4``, … (or ``meta_best_of_2``, …): how many are
            answered right by the best-scored of so many candidates.
        """
        logits = model.step_logits(self.meta)
        totals = [aggregate(steps) for steps in logits]
        value = auc(totals, [bool(row.outcome) for row in self.meta])
        stats = {} if math.isnan(value) else {"outcome_auc": value}
        candidates = [row for question in self.questions for row in question.trajectories()]
        observed = [row for rows in self.by_domain.values() for row in rows]
        # Together, as batches are filled best with many.
        found = iter(model.step_logits([*candidates, *observed]))
        scores = [[aggregate(next(found)) for _ in q.candidates] for q in self.questions]
        if self.questions:
            for n in sizes(max(len(q.candidates) for q in self.questions))[1:]:
                chances = [
                    expected_best(row, [bool(c.correct) for c in question.candidates], n)
                    for row, question in zip(scores, self.questions, strict=True)
                ]
                stats[f"{self.source}_best_of_{n}"] = math.fsum(chances) / len(chances)
        self.histograms = {
            f"step_scores/{name}": [_sigmoid(logit) for _ in rows for logit in next(found)]
            for name, rows in self.by_domain.items()
        }
        chosen = _right_and_wrong(self.meta, self.samples)
        self._drawn = (
            [self.meta[i] for i in chosen],
            [[_sigmoid(logit) for logit in logits[i]] for i in chosen],
        )
        return stats

    def figures(self) -> dict[str, Any]:
        """Solutions of the meta set with the scores that were found last."""
        if self._drawn is None or not self._drawn[0]:
            return {}
        return {"scored_steps": scored_solutions(*self._drawn)}


def build_observer(
    config: ObserveConfig,
    train: Sequence[Trajectory],
    meta: list[Trajectory],
    test: Sequence[SelectionQuestion],
    fits: Callable[[Trajectory], bool],
) -> Observer:
    """Chooses what is looked at, the same in every validation.

    Args:
        config: how much.
        train, meta, test: the data of the run. Without a test set, the selection is observed on
            the questions of the meta set that have right and wrong solutions.
        fits: whether a solution is short enough; of data on disk that is not known before.
    """
    short = (question for question in test if all(map(fits, question.trajectories())))
    source, questions = "test", list(itertools.islice(short, config.questions))
    if not test:
        groups = group_candidates(meta)[:DRAWN_FROM] if config.questions else []
        mixed = [g for g in groups if len({c.correct for c in g.candidates}) == 2]
        source, questions = "meta", mixed[: config.questions]
    by_domain: dict[str, list[Trajectory]] = {}
    if config.solutions:
        count = min(len(train), DRAWN_FROM)
        for i in range(count):
            row = train[i * len(train) // count]
            rows = by_domain.setdefault(row.domain, []) if len(by_domain) < DOMAINS else None
            rows = by_domain.get(row.domain) if rows is None else rows
            if rows is not None and len(rows) < config.solutions and fits(row):
                rows.append(row)
    return Observer(meta, questions, source, dict(sorted(by_domain.items())), config.samples)


def _right_and_wrong(rows: Sequence[Trajectory], count: int) -> list[int]:
    """The first right one, the first wrong one, the second right one, …"""
    kinds = [
        [i for i, row in enumerate(rows) if bool(row.outcome) is kind] for kind in (True, False)
    ]
    order = sorted(
        (place, kind, i) for kind, found in enumerate(kinds) for place, i in enumerate(found)
    )
    return [i for _, _, i in order[:count]]


def _sigmoid(logit: float) -> float:
    return 0.5 * (1 + math.tanh(logit / 2))
