"""How good a reward model is: step AUC, and the accuracy of picking the best of N."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from sklearn.metrics import roc_auc_score

from dreamprm.data.trajectory import SelectionQuestion


def auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Area under the ROC curve; None where only one class is there."""
    return float(roc_auc_score(right, scores)) if len(set(right)) == 2 else None


def aggregate(step_logits: Sequence[float]) -> float:
    """The mean step logit of one solution; −∞ for a solution without steps."""
    return math.fsum(step_logits) / len(step_logits) if step_logits else -math.inf


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
    voted = False
    by_source: dict[str, list[bool]] = defaultdict(list)
    flat_scores: list[float] = []
    flat_right: list[bool] = []
    for question, logits in zip(questions, step_logits, strict=True):
        candidates = question.candidates
        right = [c.correct for c in candidates]
        scores = [aggregate(steps) for steps in logits]
        picked.append(right[scores.index(max(scores))])
        random.append(sum(right) / len(right))
        possible.append(any(right))
        answers = [c.answer for c in candidates]
        votes = Counter(answer for answer in answers if answer is not None)
        voted = voted or bool(votes)
        majority.append(bool(votes) and right[answers.index(votes.most_common(1)[0][0])])
        for candidate, steps in zip(candidates, logits, strict=True):
            by_source[candidate.domain].append(candidate.correct)
            for label, logit in zip(candidate.step_labels or (), steps, strict=False):
                if label is not None:
                    flat_scores.append(logit)
                    flat_right.append(label > 0.5)
    sources = [
        _mean(right) for name, right in by_source.items() if name and len(right) == len(questions)
    ]
    return {
        "best_of_n": _mean(picked),
        "random_pick": _mean(random),
        "pass_at_n": _mean(possible),
        "majority_vote": _mean(majority) if voted else None,
        "best_source": max((s for s in sources if s is not None), default=None),
        "step_auc": auc(flat_scores, flat_right),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
