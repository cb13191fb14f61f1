"""Completions that the search for the first wrong step spends, and saves, on simulated solutions.

    python benchmarks/annotation.py

A solution of n steps has its first wrong step anywhere with the same chance. A completion of a
prefix before it ends right with the given chance, of a later prefix never. Prints JSON lines:
``completions`` of a solution by either search, ``saving`` their ratio, and ``found``, the share of
solutions whose first wrong step is where the search says: none of M completions ends right before
it by bad luck.
"""

from __future__ import annotations

import argparse
import json
import random

from dreamprm.annotation.search import SEARCHES, Labels


def simulate(
    search: str, steps: int, wrong: int, completions: int, chance: float, rng: random.Random
) -> tuple[Labels, int]:
    """Labels of one wrong solution, and the completions that they took."""
    course = SEARCHES[search](steps, False)
    spent = 0
    try:
        asked = next(course)
        while True:
            spent += completions * len(asked)
            right = {
                i: sum(i < wrong and rng.random() < chance for _ in range(completions))
                for i in asked
            }
            asked = course.send({i: (n, completions) for i, n in right.items()})
    except StopIteration as end:
        return end.value, spent


def first_zero(labels: Labels) -> int:
    """The first step that the labels call wrong."""
    return labels.labels.index(0.0) + 1


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--solutions", type=int, default=10_000, help="of each length")
    parser.add_argument("--completions", type=int, default=8, help="of a prefix")
    parser.add_argument("--chances", type=float, nargs="*", default=[0.3, 0.6, 0.9])
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 10, 15, 20])
    options = parser.parse_args()
    for steps in options.steps:
        for chance in options.chances:
            spent = dict.fromkeys(SEARCHES, 0)
            found = dict.fromkeys(SEARCHES, 0)
            for name in SEARCHES:
                rng = random.Random(0)
                for _ in range(options.solutions):
                    wrong = rng.randint(1, steps)
                    labels, cost = simulate(name, steps, wrong, options.completions, chance, rng)
                    spent[name] += cost
                    found[name] += first_zero(labels) == wrong
            line = {
                "steps": steps,
                "chance": chance,
                "completions": {k: round(v / options.solutions, 1) for k, v in spent.items()},
                "saving": round(spent["all"] / spent["first_error"], 2),
                "found": {k: round(v / options.solutions, 3) for k, v in found.items()},
                "of_a_prefix": options.completions,
                "solutions": options.solutions,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
