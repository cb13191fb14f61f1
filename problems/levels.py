"""Where a problem stands between the others: who sees through it, and who still waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamprm.problems.stateless import others

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem


def uppers_through(problem: Problem) -> list[tuple[Problem, Problem]]:
    """The upper problems whose hypergradients pass through a problem.

    Returns:
        of each path, the problem that it goes on to, and the one whose hypergradient it is.
    """
    paths = [path for each in others(problem) for path in each._paths]
    return [(path[path.index(problem, 1) + 1], path[0]) for path in paths if problem in path[1:-1]]


def held_by_warm_up(upper: Problem, stepping: Problem) -> bool:
    """Whether the inner loops under way below an upper problem end without a step of it.

    betty lets no problem above step while ``count`` is not beyond ``warmup_steps``.

    Args:
        upper: who waits.
        stepping: the problem whose step ``count`` counts already; of the others, the next one is
            meant.
    """
    return any(
        each.count + (each is not stepping) <= _fruitless_steps(each)
        or held_by_warm_up(each, stepping)
        for each in upper.children
    )


def _fruitless_steps(problem: Problem) -> int:
    """Of the inner loops that end within the warm-up."""
    length = problem.config.unroll_steps
    return problem.warmup_steps // length * length
