"""MATH-Vision (github.com/mathllm/MATH-V): questions, images and the responses of several runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.reading import checked
from dreamprm.data.rows import need, read_rows
from dreamprm.data.steps import stripped_steps
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per response, its run being the domain and ``correct`` the outcome.

    Args:
        path: a folder with ``questions.jsonl``, ``responses.jsonl`` (rows with a key ``run``) and
            the images.

    Raises:
        UserError: a row lacks a key, or a response is to no question.
    """
    questions = {}
    for where, row in read_rows(path / "questions.jsonl"):
        options = [
            f"({letter}) {option}"
            for letter, option in zip("ABCDEFGH", need(row, "options", list, where), strict=False)
        ]
        text = re.sub(r"<image\d+>", "", need(row, "question", str, where)).strip()
        image = need(row, "image", str, where)
        questions[need(row, "id", str, where)] = "\n".join([text, *options]), image
    for where, row in read_rows(path / "responses.jsonl"):
        question_id, run = need(row, "id", str, where), need(row, "run", str, where)
        if question_id not in questions:
            raise UserError(f"{where}: there is no question {question_id!r}")
        question, image = questions[question_id]
        yield (
            where,
            checked(
                where,
                path,
                id=f"{question_id}/{run}",
                domain=run,
                question=question,
                steps=stripped_steps(need(row, "response", str, where)),
                images=[image],
                outcome=need(row, "correct", bool, where),
                answer=need(row, "model_answer", str, where),
            ),
        )


MATH_VISION = Format(
    "math-vision", read, lambda row: False, folder=True, origin="https://github.com/mathllm/MATH-V"
)
