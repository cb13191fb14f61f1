"""``dreamprm evaluate``: the demo's own numbers, hand-made scores, and what it refuses."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamprm import evaluate, load_questions
from dreamprm.cli import main
from dreamprm.data.formats import save_questions, save_trajectories
from dreamprm.data.trajectory import Candidate, SelectionQuestion, Trajectory
from dreamprm.errors import UserError
from dreamprm.evaluation.accuracy import evaluate_selection
from dreamprm.evaluation.data_sets import DataSet
from dreamprm.evaluation.evaluate import Settings
from dreamprm.evaluation.evaluate_selection import evaluate_picks
from dreamprm.evaluation.examples import choose_examples
from dreamprm.evaluation.reading import read_evaluation
from dreamprm.evaluation.result import Curve, Selection
from dreamprm.scoring.aggregation import AGGREGATIONS, aggregate, probability
from dreamprm.scoring.selection import choose
from tests.shared import SHARED, needs_shared
from tests.test_cli import run_demo

FAST = Settings(bootstrap=50)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "demo"
    run_demo(out)
    return out


def test_it_reproduces_the_numbers_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = json.loads((run / "summary.json").read_text())["runs"]
    out = tmp_path / "evaluation.json"
    both = [str(run), str(run / "uniform")]
    assert main(["evaluate", *both, "--bootstrap", "50", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = read_evaluation(out)
    assert json.dumps(found.as_json()) + "\n" == out.read_text()
    assert found.models == both
    (data,) = found.selection
    (steps,) = found.steps
    for name, kind in zip(both, ("domain_table", "uniform"), strict=True):
        numbers = data.models[name]
        assert numbers.summary == runs[kind]
        assert numbers.rules["mean_logit"].accuracy[-1] == runs[kind]["best_of_n"]
        assert steps.models[name].total.auc.value == runs[kind]["step_auc"]
        assert f"{runs[kind]['best_of_n']:.3f}" in printed
    for key, value in data.baselines.items():
        if key in runs["uniform"]:
            assert value.accuracy[-1] == pytest.approx(runs["uniform"][key], abs=1e-12)
    # The file of the test set is the test set.
    test = str(run / "synthetic" / "test.jsonl")
    again = evaluate(both, [test], [test], FAST)
    assert again.selection[0].models == data.models
    assert again.steps[0].models == steps.models
    assert main(["evaluate", *both, "--out", str(out)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_examples_have_what_a_report_shows(run: Path) -> None:
    (found,) = evaluate([str(run)], settings=Settings(bootstrap=0, examples=2)).examples
    questions = {q.id: q for q in load_questions(run / "synthetic" / "test.jsonl")}
    assert [len(kind) for kind in (found.best, found.worst)] == [2, 2]
    assert found.best[0].aggregated > found.worst[0].aggregated
    for example in [*found.best, *found.worst, *found.mistakes]:
        name, index = example.id.split("/")
        candidate = questions[name].candidates[int(index)]
        assert tuple(step.text for step in example.steps) == candidate.steps
        assert [step.label for step in example.steps] == list(candidate.step_labels or ())
        assert all(0 < step.score < 1 for step in example.steps)
        assert example.correct == candidate.correct
        assert all(Path(image).is_file() for image in example.images)
    for example in found.mistakes:
        assert example.right is not None
        assert (example.correct, example.right.correct) == (False, True)


def hand_made() -> tuple[list[SelectionQuestion], dict[str, list[list[list[float]]]]]:
    """Questions with three to five candidates and tied scores; all right, all wrong, no answers."""
    rng = random.Random(3)
    questions, scores = [], {"a": [], "b": []}
    for number in range(25):
        count = rng.randint(3, 5)
        kind = {0: [True], 1: [False]}.get(number, [True, False, False])
        candidates = tuple(
            Candidate(
                ("x" * rng.randint(1, 3),) * rng.randint(1, 3),
                rng.choice(["1", "2", "3"]) if number % 5 else None,
                rng.choice(kind),
                None,
                f"source {i}",
            )
            for i in range(count)
        )
        questions.append(SelectionQuestion(f"q{number}", "?", candidates))
        for logits in scores.values():
            logits.append([[float(rng.randint(-1, 1)) for _ in c.steps] for c in candidates])
    return questions, scores


def judged(
    questions: list[SelectionQuestion],
    scores: dict[str, list[list[list[float]]]],
    settings: Settings,
) -> Selection:
    """The picks of questions by scores of their candidates' steps."""
    data = DataSet("made", "by hand", questions, [r for q in questions for r in q.trajectories()])
    flat = {name: [steps for row in found for steps in row] for name, found in scores.items()}
    return evaluate_picks(data, flat, settings.judging)


def test_hand_made_scores_equal_brute_force() -> None:
    questions, scores = hand_made()
    found = judged(questions, scores, Settings(bootstrap=0))
    assert found.n == [1, 2, 4, 5]
    assert found.candidates == [3, 5]
    assert found.exact_votes == [True] * 4

    def expectation(pick: Any, n: int) -> float:
        """Over all subsets of n candidates of every question; pick gives whether it is right."""
        chances = []
        for q, question in enumerate(questions):
            count = len(question.candidates)
            subsets = itertools.combinations(range(count), min(n, count))
            chances.append(np.mean([pick(q, subset) for subset in subsets]))
        return float(np.mean(chances))

    def right(q: int, i: int) -> bool:
        return bool(questions[q].candidates[i].correct)

    for k, n in enumerate(found.n):
        for model, logits in scores.items():
            for rule in [*AGGREGATIONS, *(f"vote+{name}" for name in AGGREGATIONS)]:

                def chosen(q: int, subset: Any, rule: str = rule, logits: Any = logits) -> bool:
                    answers = [questions[q].candidates[i].answer for i in subset]
                    choice = choose([logits[q][i] for i in subset], rule, answers).choice
                    return right(q, subset[choice])

                value = found.models[model].rules[rule].accuracy[k]
                assert value == pytest.approx(expectation(chosen, n), abs=1e-12), (rule, n)

        def longest(q: int, subset: Any, sign: int = 1) -> bool:
            length = [sign * sum(map(len, questions[q].candidates[i].steps)) for i in subset]
            return right(q, subset[length.index(max(length))])

        baselines = {
            "random_pick": lambda q, s: np.mean([right(q, i) for i in s]),
            "pass_at_n": lambda q, s: any(right(q, i) for i in s),
            "longest": longest,
            "shortest": lambda q, s: longest(q, s, -1),
        }
        for name, pick in baselines.items():
            value = found.baselines[name].accuracy[k]
            assert value == pytest.approx(expectation(pick, n), abs=1e-12), (name, n)


def test_picks_comparisons_and_the_best_source() -> None:
    questions, scores = hand_made()
    found = judged(questions, scores, Settings(("mean_logit", "min"), 200))
    source = found.baselines["best_source"]
    shares = {
        f"source {i}": np.mean([bool(q.candidates[i].correct) for q in questions]) for i in range(3)
    }
    assert source.accuracy == pytest.approx([max(shares.values())] * 4, abs=1e-12)
    assert shares[str(source.source)] == max(shares.values())
    outcomes: dict[tuple[str, str], list[bool]] = {}
    assert found.picks is not None
    for question, picks in zip(questions, found.picks, strict=True):
        assert picks.right == [bool(c.correct) for c in question.candidates]
        for name, pick in picks.baselines.items():
            outcomes.setdefault((name, ""), []).append(pick >= 0 and picks.right[pick])
        for model, of in picks.models.items():
            for rule, pick in of.picks.items():
                outcomes.setdefault((model, rule), []).append(picks.right[pick])
    for model in scores:
        summary = evaluate_selection(questions, scores[model])
        assert found.models[model].summary == summary
        assert np.mean(outcomes[model, "mean_logit"]) == summary["best_of_n"]
        assert np.mean(outcomes["majority_vote", ""]) == summary["majority_vote"]
        (i,) = [i for i, q in enumerate(questions) if q.id == "q7"]
        expected = [probability(aggregate(steps, "min")) for steps in scores[model][i]]
        assert found.picks[i].models[model].aggregated["min"] == expected
    pairs = {(c.first, c.second, c.rule): c for c in found.comparisons}
    against = ["b", "longest", "shortest", "majority_vote", "best_source"]
    assert {second for first, second, _ in pairs if first == "a"} == set(against)
    for (first, second, rule), pair in pairs.items():
        one = np.array(outcomes[first, rule], dtype=int)
        other = np.array(outcomes[second, rule if second == "b" else ""], dtype=int)
        assert pair.difference == pytest.approx((one - other).mean(), abs=1e-12)
        assert pair.low is not None
        assert pair.high is not None
        assert pair.low <= pair.difference <= pair.high
        assert (pair.only_first, pair.only_second) == (
            ((one - other) == 1).sum(),
            ((one - other) == -1).sum(),
        )


def test_what_the_data_do_not_allow_is_missing() -> None:
    one = SelectionQuestion("q", "?", (Candidate(("s",), None, True),))
    found = judged([one], {"m": [[[0.0]]]}, Settings(bootstrap=0))
    assert found.n == [1]
    assert set(found.baselines) == {"random_pick", "pass_at_n", "longest", "shortest"}
    assert set(found.models["m"].rules) == set(AGGREGATIONS)
    assert found.models["m"].rules["min"] == Curve([1.0], [None], [None])
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        judged([one], {"m": [[[float("nan")]]]}, Settings(bootstrap=0))
    examples = choose_examples(
        DataSet("d", None, [one], one.trajectories()), "m", [[0.0]], "min", 3
    )
    assert [len(kind) for kind in (examples.best, examples.worst)] == [1, 1]
    assert examples.mistakes == []


def test_several_files_are_judged_apart_and_together(run: Path, tmp_path: Path) -> None:
    questions = load_questions(run / "synthetic" / "test.jsonl")
    for number, part in enumerate((questions[:4], questions[4:])):
        plain = [SelectionQuestion(q.id, f"{q.id}: {q.question}", q.candidates) for q in part]
        save_questions(tmp_path / f"part{number}.jsonl", plain)
        rows = [
            Trajectory(r.id, "d", r.question, r.steps, (), r.step_labels, r.outcome, r.answer)
            for q in plain
            for r in q.trajectories()
        ]
        save_trajectories(tmp_path / f"rows{number}.jsonl", rows)
    files = [str(tmp_path / f"part{number}.jsonl") for number in (0, 1)]
    found = evaluate([str(run)], files, files, FAST)
    assert [data.name for data in found.selection] == ["part0", "part1", "total"]
    assert [data.picks is None for data in found.selection] == [False, False, True]
    assert [data.path for data in found.steps] == [*files, None]
    parts = [(d.models[str(run)].summary["best_of_n"] or 0) * d.questions for d in found.selection]
    assert parts[0] + parts[1] == pytest.approx(parts[2], abs=1e-12)
    total = found.steps[-1].models[str(run)]
    assert set(total.domains) == {"part0", "part1"}
    apart = [data.models[str(run)].domains for data in found.steps[:2]]
    for name, before in zip(("part0", "part1"), apart, strict=True):
        assert total.domains[name].auc.value == before[name].auc.value
    # The threshold of one file, for all.
    tuned = evaluate([str(run)], [], files, Settings(bootstrap=0, threshold_domain="part0"))
    (data,) = tuned.steps
    best = data.models[str(run)].domains["part0"].processbench_best
    assert best is not None
    assert data.models[str(run)].threshold == best.threshold
    # The same candidates as trajectories with outcomes.
    rows = evaluate([str(run)], [str(tmp_path / "rows0.jsonl")], [], FAST)
    assert rows.selection[0].models == found.selection[0].models


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--aggregation", "mean_logits"], "did you mean 'mean_logit'"),
        (["--bootstrap", "-1"], "--bootstrap is -1"),
        (["--bins", "0"], "--bins is 0"),
        (["--threshold", "1.5"], "--threshold is 1.5"),
        (["--selection", "nothing.jsonl"], "there is no file nothing.jsonl"),
        (["--selection", "META"], "no solution has an outcome"),
        (["--steps", "META"], "no step has a label"),
        (["--selection", "TEST", "TEST"], "is the name of another"),
        (["--steps", "TEST", "--threshold-domain", "gsm8k"], "unknown domain 'gsm8k'"),
    ],
)
def test_what_is_refused(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    save_trajectories(tmp_path / "bare.jsonl", [Trajectory("1", "d", "?", ("s",))])
    files = {"TEST": str(run / "synthetic" / "test.jsonl"), "META": str(tmp_path / "bare.jsonl")}
    assert main(["evaluate", str(run), *(files.get(o, o) for o in options)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_other_refusals(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "there is no reward model in" in capsys.readouterr().err
    assert main(["evaluate", str(run / "model")]) == 2
    assert "give --selection or --steps" in capsys.readouterr().err
    with pytest.raises(UserError, match="each once"):
        evaluate([str(run), str(run)])
    unjudged = SelectionQuestion("q", "?", (Candidate(("s",), "1", None),))
    save_questions(tmp_path / "unjudged.jsonl", [unjudged])
    with pytest.raises(UserError, match=r"unjudged.jsonl:1: candidate 1 has no 'correct'"):
        evaluate([str(run)], [str(tmp_path / "unjudged.jsonl")])


@needs_shared
def test_real_candidates_in_another_format(run: Path, tmp_path: Path) -> None:
    lines = (SHARED / "gsm8k_solutions.jsonl").read_text().splitlines()[:80]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    settings = Settings(bootstrap=0, selection_format="gsm8k-solutions")
    (data,) = evaluate([str(run)], [str(path)], [], settings).selection
    outcomes = [json.loads(line)["outcome"] for line in lines]
    assert data.candidates == [4, 4]
    assert [picks.right for picks in data.picks or []] == np.reshape(outcomes, (20, 4)).tolist()
    sources = np.reshape(outcomes, (20, 4)).mean(axis=0)
    assert data.baselines["best_source"].accuracy[-1] == pytest.approx(sources.max())
