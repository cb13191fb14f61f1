"""How good a reward model is in a few numbers: step AUC, and the accuracy of its best of N."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from dreamprm.data.trajectory import Candidate, SelectionQuestion
from dreamprm.evaluation.best_of_n import expected_vote, pass_at
from dreamprm.evaluation.step_metrics import auc
from dreamprm.scoring.aggregation import aggregate
from dreamprm.scoring.selection import answer_groups, first_best


def evaluate_selection(
    questions: Sequence[SelectionQuestion], step_logits: Sequence[Sequence[Sequence[float]]]
) -> dict[str, float | None]:
    """Best-of-N accuracy by mean step logit, and what to hold it against.

    Args:
        questions: with their candidates.
        step_logits: one number per step, of every candidate, of every question.

    Returns:
        ``best_of_n``: the share of questions whose best-scored candidate is right (the first one
        of equals). ``random_pick``: the same for a candidate drawn at random, in expectation.
        ``pass_at_n``: the share with a right candidate. ``majority_vote``: the same for the most
        frequent answer (the first one of equals; who gave none has no vote). ``best_source``: for
        always taking the candidate of the one source that is right most often on these questions,
        which is known in hindsight only. ``step_auc``: of the step scores against the candidates'
        step labels, above 0.5 counting as right. None for what the data do not allow.
    """
    picked, random, possible, majority = [], [], [], []
    flat_scores: list[float] = []
    flat_right: list[bool] = []
    for question, logits in zip(questions, step_logits, strict=True):
        right = correctness(question)
        picked.append(right[first_best([aggregate(steps) for steps in logits])])
        random.append(sum(right) / len(right))
        possible.append(pass_at(right, len(right)))
        majority.append(majority_chance(question.candidates, len(right)))
        for candidate, steps in zip(question.candidates, logits, strict=True):
            for label, logit in zip(candidate.step_labels or (), steps, strict=False):
                if label is not None:
                    flat_scores.append(logit)
                    flat_right.append(label > 0.5)
    source = best_source(questions)
    step_auc = auc(flat_scores, flat_right)
    return {
        "best_of_n": mean(picked),
        "random_pick": mean(random),
        "pass_at_n": mean(possible),
        "majority_vote": mean(majority) if has_answers(questions) else None,
        "best_source": mean(source[1]) if source else None,
        "step_auc": None if math.isnan(step_auc) else step_auc,
    }


def correctness(question: SelectionQuestion) -> list[bool]:
    """Whether each candidate is right; one that is not known to be is not."""
    return [bool(candidate.correct) for candidate in question.candidates]


def has_answers(questions: Sequence[SelectionQuestion]) -> bool:
    """Whether some candidate gives an answer, so that there is something to vote on."""
    return any(c.answer is not None for question in questions for c in question.candidates)


def majority_chance(candidates: Sequence[Candidate], n: int, seed: Sequence[int] = (0,)) -> float:
    """The chance that the most frequent answer of a random n of the candidates is right.

    Of answers equally frequent, the first in the order of the file; without any, it is wrong.
    """
    groups = answer_groups([candidate.answer for candidate in candidates])
    right = [bool(c.correct) and g >= 0 for c, g in zip(candidates, groups, strict=True)]
    return expected_vote([1.0] * len(right), groups, right, n, seed)


def best_source(questions: Sequence[SelectionQuestion]) -> tuple[str, list[bool]] | None:
    """The source that is right most often, and where; of those with one candidate a question.

    The first by name of equals; None where no source has a name and answers every question once.
    """
    by_source: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        names = [candidate.domain for candidate in question.candidates]
        for name, right in zip(names, correctness(question), strict=True):
            if name and names.count(name) == 1:
                by_source[name].append(right)
    whole = [(n, right) for n, right in by_source.items() if len(right) == len(questions)]
    return max(sorted(whole), key=lambda source: sum(source[1]), default=None)


def mean(values: Sequence[float]) -> float | None:
    """Of what there is; None of nothing."""
    return sum(values) / len(values) if values else None
