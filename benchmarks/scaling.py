"""What a bi-level cycle costs against the number of domains, steps and tokens.

    python benchmarks/scaling.py domains steps tokens

``domains``: over the cycle with two domains. ``steps``: of a solution, tokens as they are, over
one step. ``tokens``: of a solution, per token, over the shortest. Prints JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from measuring import Setting, Shape, parser, ratio, seconds, setting, show

from dreamprm.hypergradients.cost import operations

SHAPES = {
    "domains": [Shape(domains=k) for k in (2, 15, 100, 1000)],
    "steps": [Shape(steps=n, step_tokens=240 // n) for n in (1, 5, 10, 20)],
    "tokens": [Shape(steps=5, step_tokens=n) for n in (15, 30, 60, 120)],
}


def scaling(where: Setting, section: str, method: str, repeats: int) -> Iterator[dict[str, Any]]:
    """The cycles of a section over its first one; per token where that is what grows."""
    shapes = SHAPES[section]
    cycles = {str(i): where.run(shape, method) for i, shape in enumerate(shapes)}
    times = seconds(cycles, repeats, where.device)
    counted = {name: operations(cycle) for name, cycle in cycles.items()}
    lengths = [shape.prompt + shape.steps * shape.step_tokens for shape in shapes]
    for i, shape in enumerate(shapes[1:], start=1):
        by = lengths[0] / lengths[i]
        yield {
            "benchmark": "scaling",
            "section": section,
            "method": method,
            "cost": ratio(times, str(i), "0", by),
            "operations": round(by * counted[str(i)] / counted["0"], 4),
            "over": {k: v for k, v in asdict(shapes[0]).items() if v != asdict(shape)[k]},
            **asdict(shape),
        }


def main() -> None:
    """Prints what was asked for."""
    options = parser(__doc__.splitlines()[0], repeats=7)
    options.add_argument("sections", nargs="*", default=tuple(SHAPES))
    options.add_argument("--method", default="t1t2", help="of the hypergradient")
    options.add_argument("--batch", type=int, default=4, help="solutions")
    found = options.parse_args()
    if unknown := set(found.sections) - set(SHAPES):
        options.error(f"no such section: {', '.join(sorted(unknown))}")
    for section in found.sections:
        SHAPES[section] = [replace(shape, batch=found.batch) for shape in SHAPES[section]]
        show(scaling(setting(found), section, found.method, found.repeats))


if __name__ == "__main__":
    main()
