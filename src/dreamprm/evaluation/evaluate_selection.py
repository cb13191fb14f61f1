"""Best-of-N of several models on one set of questions: rules, every N, and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from dreamprm.data.trajectory import SelectionQuestion
from dreamprm.errors import UserError
from dreamprm.evaluation.accuracy import (
    best_source,
    correctness,
    evaluate_selection,
    has_answers,
    majority_chance,
)
from dreamprm.evaluation.best_of_n import (
    expected_best,
    expected_majority,
    expected_vote,
    is_exact,
    pass_at,
    sizes,
)
from dreamprm.evaluation.data_sets import DataSet
from dreamprm.evaluation.result import (
    Curve,
    Judging,
    ModelPicks,
    ModelSelection,
    QuestionPicks,
    Selection,
)
from dreamprm.evaluation.significance import (
    Comparison,
    bootstrap_means,
    interval,
    paired_difference,
)
from dreamprm.scoring.aggregation import VOTE, aggregate, probabilities
from dreamprm.scoring.selection import answer_groups, choose, first_best, vote_values

Values = list[list[float]]  # for every question, for every N


def evaluate_picks(
    data: DataSet, step_logits: Mapping[str, Sequence[list[float]]], settings: Judging
) -> Selection:
    """Best-of-N of several models on the same questions.

    Args:
        data: questions with candidates known to be right or wrong.
        step_logits: by the name of the model: of every step of every solution of the data.
        settings: how picking is judged.

    Raises:
        UserError: there are no questions, or there is no such aggregation.
        FloatingPointError: a logit is no number.
    """
    questions = data.questions
    if not questions:
        raise UserError("there are no questions to pick candidates of")
    ns = sizes(max(len(question.candidates) for question in questions))
    right = [correctness(question) for question in questions]
    voted = has_answers(questions)
    values, fixed = _baselines(questions, right, ns, voted, settings.seed)
    source = best_source(questions)
    models: dict[str, ModelSelection] = {}
    picks: dict[str, dict[str, list[int]]] = {}
    aggregated: dict[str, dict[str, list[list[float]]]] = {}
    for name, rows in step_logits.items():
        logits = data.by_question(rows)
        found, picks[name], aggregated[name] = _rules(questions, right, logits, ns, voted, settings)
        summary = evaluate_selection(questions, logits)
        models[name] = ModelSelection(summary, _with_intervals(found, settings))
    baselines = _with_intervals(values, settings)
    if source:
        baselines["best_source"] = replace(baselines["best_source"], source=source[0])

    def of_question(i: int, question: SelectionQuestion) -> QuestionPicks:
        return QuestionPicks(
            question.id,
            right[i],
            [candidate.domain for candidate in question.candidates],
            {name: chosen[i] for name, chosen in fixed.items()},
            {
                name: ModelPicks(
                    {rule: chosen[i] for rule, chosen in picks[name].items()},
                    {a: scores[i] for a, scores in aggregated[name].items()},
                )
                for name in step_logits
            },
        )

    return Selection(
        name=data.name,
        path=data.path,
        questions=len(questions),
        candidates=[min(map(len, right)), max(map(len, right))],
        n=ns,
        exact_votes=[all(is_exact(len(r), n) for r in right) for n in ns],
        baselines=baselines,
        models=models,
        comparisons=_comparisons(right, picks, fixed, settings),
        # Of several files together, they stand with the files.
        picks=None if data.path is None else list(starmap(of_question, enumerate(questions))),
    )


def _baselines(
    questions: Sequence[SelectionQuestion],
    right: Sequence[list[bool]],
    ns: Sequence[int],
    voted: bool,
    seed: int,
) -> tuple[dict[str, Values], dict[str, list[int]]]:
    """What needs no reward model: by name, chances for every N, and picks of all candidates."""
    lengths = [[float(sum(map(len, c.steps))) for c in q.candidates] for q in questions]
    shortest = [[-length for length in row] for row in lengths]
    values: dict[str, Values] = {
        "random_pick": [[sum(r) / len(r)] * len(ns) for r in right],
        "pass_at_n": [[pass_at(r, n) for n in ns] for r in right],
    }
    picks: dict[str, list[int]] = {}
    for name, scores in (("longest", lengths), ("shortest", shortest)):
        values[name] = [
            [expected_best(row, r, n) for n in ns] for row, r in zip(scores, right, strict=True)
        ]
        picks[name] = [first_best(row) for row in scores]
    if voted:
        values["majority_vote"] = [
            [majority_chance(q.candidates, n, (seed, i)) for n in ns]
            for i, q in enumerate(questions)
        ]
        values["majority_random_ties"] = [
            [_majority_random_ties(q, n, (seed, i)) for n in ns] for i, q in enumerate(questions)
        ]
        picks["majority_vote"] = [_majority_pick(question) for question in questions]
    source = best_source(questions)
    if source:
        values["best_source"] = [[float(r)] * len(ns) for r in source[1]]
        picks["best_source"] = [
            [candidate.domain for candidate in q.candidates].index(source[0]) for q in questions
        ]
    return values, picks


def _majority_random_ties(question: SelectionQuestion, n: int, seed: tuple[int, int]) -> float:
    groups = answer_groups([candidate.answer for candidate in question.candidates])
    right = [r and g >= 0 for r, g in zip(correctness(question), groups, strict=True)]
    return expected_majority(groups, right, n, seed)


def _majority_pick(question: SelectionQuestion) -> int:
    """The first candidate with the most frequent answer; −1 where nobody gives an answer."""
    groups = answer_groups([candidate.answer for candidate in question.candidates])
    if (groups < 0).all():
        return -1
    everyone = np.ones((1, len(groups)), dtype=bool)
    return int(vote_values(everyone, np.ones(len(groups)), groups).argmax())


def _rules(
    questions: Sequence[SelectionQuestion],
    right: Sequence[list[bool]],
    logits: Sequence[Sequence[list[float]]],
    ns: Sequence[int],
    voted: bool,
    settings: Judging,
) -> tuple[dict[str, Values], dict[str, list[int]], dict[str, list[list[float]]]]:
    """One model's chances for every N and picks of all, by rule; and its aggregated scores."""
    values: dict[str, Values] = {}
    picks: dict[str, list[int]] = {}
    aggregated: dict[str, list[list[float]]] = {}
    answers = [[candidate.answer for candidate in q.candidates] for q in questions]
    groups = [answer_groups(found) for found in answers]
    for name in settings.aggregations:
        log_odds = [[aggregate(steps, name) for steps in row] for row in logits]
        aggregated[name] = [probabilities(row) for row in log_odds]
        values[name] = [
            [expected_best(row, r, n) for n in ns] for row, r in zip(log_odds, right, strict=True)
        ]
        picks[name] = [first_best(row) for row in log_odds]
        if voted:
            rule = f"{VOTE}+{name}"
            values[rule] = [
                [expected_vote(w, g, r, n, (settings.seed, i)) for n in ns]
                for i, (w, g, r) in enumerate(zip(aggregated[name], groups, right, strict=True))
            ]
            picks[rule] = [
                choose(row, rule, a).choice for row, a in zip(logits, answers, strict=True)
            ]
    return values, picks, aggregated


def _with_intervals(values: Mapping[str, Values], settings: Judging) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for name, rows in values.items():
        table: NDArray[np.float64] = np.array(rows)
        samples = bootstrap_means(table, settings.bootstrap, settings.seed)
        limits = [interval(column) for column in samples.T]
        accuracy = [math.fsum(column) / len(rows) for column in table.T]
        found[name] = Curve(accuracy, [low for low, _ in limits], [high for _, high in limits])
    return found


def _comparisons(
    right: Sequence[list[bool]],
    picks: Mapping[str, Mapping[str, list[int]]],
    fixed: Mapping[str, list[int]],
    settings: Judging,
) -> list[Comparison]:
    """Every two models by the same rule, and every model against every baseline that picks one."""

    def outcomes(chosen: Sequence[int]) -> list[bool]:
        return [i >= 0 and r[i] for r, i in zip(right, chosen, strict=True)]

    models = list(picks)
    found = []
    for number, first in enumerate(models):
        for rule, chosen in picks[first].items():
            others = [(name, picks[name][rule]) for name in models[number + 1 :]]
            for second, other in [*others, *fixed.items()]:
                pair, names = (outcomes(chosen), outcomes(other)), (first, second, rule)
                found.append(paired_difference(*pair, settings.bootstrap, settings.seed, names))
    return found
