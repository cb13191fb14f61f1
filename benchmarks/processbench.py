"""People's step labels with trouble made in some domains, in folders for `baselines.py`.

    python benchmarks/processbench.py --root DIR --out DIR --seeds 10 --trouble inverted

Every seed has a folder: ProcessBench's files are four domains, and some of them get trouble: their
labels are inverted, or shuffled among their steps. The meta set and the test, a third of the
problems, are apart from them and stay clean.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from dreamprm.data.formats import load_trajectories, save_questions, save_trajectories
from dreamprm.data.trajectory import Candidate, SelectionQuestion, Trajectory

FILES = ("gsm8k", "math", "olympiadbench", "omnimath")


def solutions(root: Path, most: int | None, characters: int | None) -> list[Trajectory]:
    """The first so many right solutions of every file, and as many wrong ones, of those that are
    not longer; right are those none of whose steps is wrong."""
    found = []
    for name in FILES:
        taken = {True: 0, False: 0}
        for row in load_trajectories(str(root / f"{name}.json"), "processbench"):
            if characters and len(row.question) + sum(map(len, row.steps)) > characters:
                continue
            right = 0.0 not in (row.step_labels or ())
            taken[right] += 1
            if most is None or taken[right] <= most:
                found.append(replace(row, domain=name, outcome=right))
    return found


def parts(
    rows: Sequence[Trajectory], trouble: str, troubled: Iterable[str], seed: int, meta: int
) -> tuple[list[Trajectory], list[Trajectory], list[Trajectory]]:
    """Training solutions, meta set and test, apart by their problems."""
    draw = random.Random(seed)
    problems = sorted({row.question for row in rows})
    draw.shuffle(problems)
    test = set(problems[: len(problems) // 3])
    of_meta = set(problems[len(test) : len(test) + meta])
    training = [row for row in rows if row.question not in test | of_meta]
    for domain in troubled:
        places = [i for i, row in enumerate(training) if row.domain == domain]
        clean = [training[i] for i in places]
        for i, row in zip(places, made(clean, trouble, draw), strict=True):
            training[i] = row
    return (
        training,
        [row for row in rows if row.question in of_meta],
        [row for row in rows if row.question in test],
    )


def made(rows: Sequence[Trajectory], trouble: str, draw: random.Random) -> list[Trajectory]:
    """The solutions of a domain with trouble."""
    known = [label for row in rows for label in row.step_labels or () if label is not None]
    if trouble == "shuffled":
        draw.shuffle(known)
    elif trouble == "inverted":
        known = [1 - label for label in known]
    new = iter(known)
    return [
        replace(
            row,
            step_labels=tuple(
                None if label is None else next(new) for label in row.step_labels or ()
            ),
        )
        for row in rows
    ]


def as_questions(rows: Iterable[Trajectory]) -> list[SelectionQuestion]:
    """The problems with their solutions as candidates."""

    def problem(row: Trajectory) -> str:
        return row.question

    return [
        SelectionQuestion(
            id=f"{number:04d}",
            question=text,
            candidates=tuple(
                Candidate(
                    steps=row.steps,
                    answer=None,
                    correct=row.outcome,
                    domain=row.domain,
                    step_labels=row.step_labels,
                )
                for row in of
            ),
        )
        for number, (text, of) in enumerate(groupby(sorted(rows, key=problem), problem))
    ]


def main() -> None:
    """Writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="with gsm8k.json and the others")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trouble", choices=("none", "inverted", "shuffled"), default="inverted")
    parser.add_argument("--troubled", nargs="*", default=["gsm8k", "omnimath"], choices=FILES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed; for tuning, 100")
    parser.add_argument("--meta", type=int, default=60, help="problems of the meta set")
    parser.add_argument("--most", type=int, help="right, and wrong, solutions of a file")
    parser.add_argument("--characters", type=int, help="leave out longer solutions")
    options = parser.parse_args()
    rows = solutions(options.root, options.most, options.characters)
    for seed in range(options.first, options.first + options.seeds):
        training, meta, test = parts(rows, options.trouble, options.troubled, seed, options.meta)
        folder = options.out / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_trajectories(folder / "train.jsonl", training)
        save_trajectories(folder / "meta.jsonl", meta)
        save_questions(folder / "test.jsonl", as_questions(test))
        save_trajectories(folder / "test_steps.jsonl", test)
    counts = [sum(row.domain == name for row in rows) for name in FILES]
    print(dict(zip(FILES, counts, strict=True)), f"training {len(training)}, meta {len(meta)}")


if __name__ == "__main__":
    main()
