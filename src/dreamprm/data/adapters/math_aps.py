"""MATH-APS, OmegaPRM's search (arXiv 2406.06592) as OpenR publishes it, as a list or as a tree.

``reasoning_steps`` is a list of ``{solution_prefix, mc_value}``, the question being part of every
prefix, or a tree of ``{text, mc_value, children}`` whose root is the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.prefixes import longest, steps_and_labels
from dreamprm.data.adapters.reading import Ids, Rows, checked
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

Steps = tuple[list[str], list[float | None]]


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per leaf, with the Monte Carlo value of every node on the way to it.

    Left out: the value of the bare question, and ``final_answer``, which is the right answer and
    not the solution's.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    rows, ids = Rows(path), Ids()
    for where, row in rows:
        question = need(row, "question", str, where)
        found = need(row, "reasoning_steps", (list, dict), where)
        solutions = (
            _of_list(found, question, where) if isinstance(found, list) else _of_tree(found, where)
        )
        name = ids.apart(str(row.get("question_id", rows.total)))
        for number, (steps, labels) in enumerate(solutions):
            yield (
                where,
                checked(
                    where,
                    path.parent,
                    id=f"{name}/{number}",
                    domain=path.stem,
                    question=question,
                    steps=steps,
                    step_labels=labels,
                ),
            )


def _of_list(found: list[Any], question: str, where: str) -> Iterator[Steps]:
    values: dict[str, float] = {}
    for item in found:
        if not isinstance(item, dict):
            raise UserError(f"{where}: a prefix is {type(item).__name__}, expected an object")
        prefix = need(item, "solution_prefix", str, where)
        if not prefix.startswith(question):
            raise UserError(
                f"{where}: solution_prefix {prefix[:40]!r}… does not begin with question"
            )
        text = prefix[len(question) :].strip()
        if text:
            values.setdefault(text, need(item, "mc_value", (int, float), where))
    for solution in longest(values):
        yield steps_and_labels(solution, values)


def _of_tree(root: dict[str, Any], where: str) -> Iterator[Steps]:
    # A stack and no recursion: the depth is the file's.
    stack: list[tuple[Any, list[str], list[float | None]]] = [
        (child, [], []) for child in reversed(need(root, "children", list, where))
    ]
    while stack:
        node, steps, labels = stack.pop()
        if not isinstance(node, dict):
            raise UserError(f"{where}: a node is {type(node).__name__}, expected an object")
        steps = [*steps, need(node, "text", str, where).strip()]
        labels = [*labels, need(node, "mc_value", (int, float), where)]
        children = need(node, "children", list, where)
        if not children:
            yield steps, labels
        stack += [(child, steps, labels) for child in reversed(children)]


MATH_APS = Format("math-aps", read, lambda row: {"question", "reasoning_steps"} <= set(row))
