"""Questions with their right answers, as they are read from a file."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamprm.data.formats import checked_rows
from dreamprm.data.rows import read_rows
from dreamprm.data.trajectory import Trajectory, check_keys
from dreamprm.errors import UserError

LETTERS = string.ascii_uppercase[:10]  # of options
_KEYS = ("id", "question", "images", "answer", "domain", "options")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique within a file.
        domain: the data set that it comes from.
        question: its text, options excluded.
        answer: the right one.
        images: files that belong to it.
        options: to choose from, A to J; empty where the answer is free.
    """

    id: str
    domain: str
    question: str
    answer: str
    images: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The question with its options, a line each."""
        lines = (f"({letter}) {option}" for letter, option in zip(LETTERS, self.options))  # noqa: B905
        return "\n".join([self.question, *lines])

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> Question:
        """Reads the canonical JSON object of a question.

        Args:
            record: the object.
            folder: the images' paths are relative to it, and may not leave it.

        Raises:
            UserError: a key is missing, unknown or of the wrong type.
        """
        check_keys(record, _KEYS, ("id", "question", "answer"))
        # What a question has in common with a solution is checked as there.
        common = {key: value for key, value in record.items() if key != "options"}
        row = Trajectory.from_record({**common, "steps": []}, folder)
        if not row.answer or not row.answer.strip():
            raise UserError(f"answer is {record['answer']!r}, expected text")
        return cls(
            row.id,
            row.domain,
            row.question,
            row.answer,
            row.images,
            _options(record.get("options")),
        )


def _options(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise UserError(f"options is {value!r}, expected a list of texts")
    if len(value) > len(LETTERS):
        raise UserError(f"there are {len(value)} options, expected at most {len(LETTERS)}")
    return tuple(value)


def load_answered_questions(path: str | Path) -> list[Question]:
    """Reads a file of questions, JSON Lines, JSON or Parquet.

    Raises:
        UserError: the file is missing, empty or wrong, or an image is missing; the message names
            file and line.
    """
    return list(checked_rows(Path(path), _read(Path(path)), images="require"))


def _read(path: Path) -> Iterator[tuple[str, Question]]:
    for where, row in read_rows(path):
        try:
            yield where, Question.from_record(row, path.parent)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
