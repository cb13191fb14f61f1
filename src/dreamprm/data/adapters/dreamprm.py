"""The two formats of the published DreamPRM data (github.com/coder-qicao/DreamPRM).

Training rows: ``input`` (the question), ``add`` (the response up to a step), ``image_path``,
``dataset`` (the domain) and ``accuracy`` (the label of that step). Meta rows: ``input`` (question
and solution in one text), ``true_false`` and ``image_path``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.prefixes import longest, steps_and_labels
from dreamprm.data.adapters.reading import Ids, Rows, checked
from dreamprm.data.paths import relative_images
from dreamprm.data.rows import need
from dreamprm.data.steps import STEP_HEADING, stripped_steps
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

_FINAL_ANSWER = re.compile(r"^[ \t]*(?:\*\*)?final answer(?:\*\*)?[ \t]*:?(?:\*\*)?", re.I | re.M)


def read_train(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per solution, out of one row per step; all rows are held in memory.

    Rows of one question whose ``add`` texts begin with each other are prefixes of one solution.
    Its steps end where the prefixes end, and where a "Step n" heading begins that no row ends at;
    such a step has no label. A prefix shared by several solutions labels a step of each.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    groups: dict[tuple[str, str, str], dict[str, tuple[float, str]]] = {}
    rows = Rows(path)
    for where, row in rows:
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
        first, _ = groups.setdefault(key, {}).setdefault(prefix, (float(label), where))
        if first != label:
            rows.note("repeat a prefix with another label, of which the first is kept")
    numbers: dict[str, int] = {}
    for (domain, question, image), prefixes in groups.items():
        labels = {text: label for text, (label, _) in prefixes.items()}
        for solution in longest(prefixes):
            number = numbers[domain] = numbers.get(domain, 0) + 1
            headings = [match.start() for match in STEP_HEADING.finditer(solution)]
            steps, step_labels = steps_and_labels(solution, labels, headings)
            where = prefixes[solution][1]
            yield (
                where,
                checked(
                    where,
                    path.parent,
                    id=f"{domain}-{number}" if domain else str(number),
                    domain=domain or None,
                    question=question,
                    steps=steps,
                    images=[image] if image else [],
                    step_labels=step_labels,
                ),
            )


def write_train(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per labelled step, with the steps up to it, blank lines between.

    Raises:
        UserError: an image is outside the folder.
    """
    for row in rows:
        images = relative_images(row.images, folder)
        for number, label in enumerate(row.step_labels or (), start=1):
            if label is not None:
                yield {
                    "input": row.question,
                    "add": "\n\n".join(row.steps[:number]),
                    "image_path": images[0] if images else "",
                    "dataset": row.domain,
                    "accuracy": label,
                }


def read_meta(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row; a row without a single step gives one without steps.

    How many those are is logged. Ids that repeat are told apart by ``#2``, ``#3``, ….

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    rows, ids = Rows(path), Ids()
    for where, row in rows:
        text = need(row, "input", str, where)
        heading = STEP_HEADING.search(text)
        begin = heading.start() if heading else len(text)
        question, solution = text[:begin], text[begin:]
        final = _FINAL_ANSWER.search(solution)
        steps = stripped_steps(solution[: final.start()] if final else solution)
        if not steps:
            rows.note("hold a question without a step")
        image = need(row, "image_path", str, where)
        yield (
            where,
            checked(
                where,
                path.parent,
                id=ids.apart(str(row.get("id", rows.total))),
                domain="meta",
                question=question.strip(),
                steps=steps,
                images=[image] if image else [],
                outcome=need(row, "true_false", bool, where),
                answer=solution[final.end() :].strip() if final else None,
            ),
        )


def write_meta(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory: question, steps and final answer in one text, blank lines between.

    Raises:
        UserError: an image is outside the folder.
    """
    ids = Ids()
    for row in rows:
        name = ids.again(row.id)
        images = relative_images(row.images, folder)
        final = [f"Final answer: {row.answer}"] if row.steps and row.answer is not None else []
        yield {
            "id": int(name) if re.fullmatch("0|[1-9][0-9]{,17}", name) else name,
            "true_false": row.outcome,
            "input": "\n\n".join([row.question, *row.steps, *final]),
            "image_path": images[0] if images else "",
        }


TRAIN = Format(
    "dreamprm-train",
    read_train,
    lambda row: {"input", "add", "accuracy"} <= set(row),
    write_train,
    cannot_hold=frozenset(
        {
            "id",
            "images after the first",
            "unlabelled steps, at the end or before one without a 'Step n' heading",
            "white space around steps",
            "outcome",
            "answer",
            "extra columns",
        }
    ),
    needs=frozenset({"a labelled step"}),
)
META = Format(
    "dreamprm-meta",
    read_meta,
    lambda row: {"input", "true_false"} <= set(row),
    write_meta,
    cannot_hold=frozenset(
        {
            "domain",
            "images after the first",
            "step labels",
            "steps without a 'Step n' heading",
            "answer without steps",
            "extra columns",
        }
    ),
    needs=frozenset({"an outcome"}),
)
