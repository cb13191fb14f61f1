"""The two formats of the published DreamPRM data (github.com/coder-qicao/DreamPRM).

Training rows: ``input`` (the question), ``add`` (the response up to a step), ``image_path``,
``dataset`` (the domain) and ``accuracy`` (the label of that step). Meta rows: ``input`` (question
and solution in one text), ``true_false`` and ``image_path``.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.rows import need, read_rows
from dreamprm.data.steps import STEP_HEADING, cut, split_steps
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

log = logging.getLogger("dreamprm")

_FINAL_ANSWER = re.compile(r"^[ \t]*(?:\*\*)?final answer(?:\*\*)?[ \t]*:?(?:\*\*)?", re.I | re.M)


def read_train(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per solution, out of one row per step.

    Rows of one question whose ``add`` texts begin with each other are prefixes of one solution.
    Its steps end where the prefixes end, and where a "Step n" heading begins that no row ends at;
    such a step has no label. A prefix shared by several solutions labels a step of each.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    groups: dict[tuple[str, str, str], dict[str, tuple[float, str]]] = {}
    for where, row in read_rows(path):
        label = need(row, "accuracy", (int, float), where)
        if not (math.isfinite(label) and 0 <= label <= 1):
            raise UserError(f"{where}: accuracy is {label!r}, expected a number from 0 to 1")
        key = (
            need(row, "dataset", str, where),
            need(row, "input", str, where),
            need(row, "image_path", str, where),
        )
        prefix = need(row, "add", str, where).strip()
        if not prefix:
            raise UserError(f"{where}: add is empty, expected the response up to a step")
        groups.setdefault(key, {}).setdefault(prefix, (float(label), where))
    numbers: dict[str, int] = {}
    for (domain, question, image), prefixes in groups.items():
        for solution in _longest(prefixes):
            number = numbers[domain] = numbers.get(domain, 0) + 1
            steps, labels = _steps_and_labels(solution, prefixes)
            yield (
                prefixes[solution][1],
                Trajectory(
                    id=f"{domain}-{number}",
                    domain=domain,
                    question=question,
                    steps=tuple(steps),
                    images=_image(image, path),
                    step_labels=tuple(labels),
                ),
            )


def read_meta(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row; a row without a single step gives one without steps.

    How many those are is logged. Ids that repeat are told apart by ``#2``, ``#3``, ….

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    seen: dict[str, int] = {}
    rows = without = 0
    for where, row in read_rows(path):
        text = need(row, "input", str, where)
        heading = STEP_HEADING.search(text)
        question, solution = (text, "") if heading is None else (
            text[: heading.start()], text[heading.start() :]
        )  # fmt: skip
        final = _FINAL_ANSWER.search(solution)
        answer = solution[final.end() :].strip() if final else None
        steps = split_steps(solution[: final.start()] if final else solution)
        name = str(row.get("id", rows + 1))
        seen[name] = seen.get(name, 0) + 1
        rows += 1
        without += not steps
        yield (
            where,
            Trajectory(
                id=name if seen[name] == 1 else f"{name}#{seen[name]}",
                domain="meta",
                question=question.strip(),
                steps=tuple(steps),
                images=_image(need(row, "image_path", str, where), path),
                outcome=need(row, "true_false", bool, where),
                answer=answer,
            ),
        )
    if without:
        log.warning("%s: %d of %d rows hold a question without a step", path, without, rows)


def _longest(prefixes: dict[str, Any]) -> list[str]:
    """The texts that no other text begins with, in the order of their rows."""
    ordered = sorted(prefixes)
    # In sorted order the texts that begin with one follow it at once.
    inner = {a for a, b in itertools.pairwise(ordered) if b.startswith(a)}
    return [text for text in prefixes if text not in inner]


def _steps_and_labels(
    solution: str, prefixes: dict[str, tuple[float, str]]
) -> tuple[list[str], list[float | None]]:
    labels = {len(p): label for p, (label, _) in prefixes.items() if solution.startswith(p)}
    headings = {match.start() for match in STEP_HEADING.finditer(solution)}
    steps: list[str] = []
    step_labels: list[float | None] = []
    begin = 0
    for end in sorted({*labels, *headings, len(solution)} - {0}):
        piece = cut(solution[begin:end], [])
        if piece:
            steps += piece
            step_labels.append(labels.get(end))
        elif end in labels and steps and step_labels[-1] is None:
            step_labels[-1] = labels[end]
        begin = end
    return steps, step_labels


def _image(image: str, path: Path) -> tuple[Path, ...]:
    if not image:
        return ()
    root = path.parent.resolve()
    if not (root / image).resolve().is_relative_to(root):
        raise UserError(f"{path}: image {image!r} is outside the folder of the file")
    return (path.parent / image,)
