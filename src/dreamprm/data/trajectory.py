"""The one record type: a solution to a question, step by step, with what is known of its worth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dreamprm.data.extra import extra_columns, near_names
from dreamprm.data.paths import image_path, relative_images
from dreamprm.errors import UserError, shown, unknown_name


@dataclass(frozen=True)
class Trajectory:
    """One solution.

    Attributes:
        id: unique within a file.
        domain: the data set that it comes from; a domain has one weight.
        question: its text.
        steps: of the solution; empty where there are none.
        images: files that belong to the question.
        step_labels: p_i in [0, 1] for each step, None for a step without one; None for none at all.
        outcome: whether the final answer is right; None where unknown.
        answer: the final answer of the solution.
        extra: further columns of the data, by name, with any values that JSON can hold; they are
            kept as they are, can be grouped by, and are not to be changed in place.
    """

    id: str
    domain: str
    question: str
    steps: tuple[str, ...]
    images: tuple[Path, ...] = ()
    step_labels: tuple[float | None, ...] | None = None
    outcome: bool | None = None
    answer: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for key in self.extra:
            if key in TRAJECTORY_KEYS:
                raise UserError(f"extra holds {key!r}, which is a key of the format's own")

    @property
    def question_key(self) -> Hashable:
        """Equal for the solutions of one question."""
        return self.question, self.images

    @property
    def has_labels(self) -> bool:
        """Whether some step has a label."""
        return any(label is not None for label in self.step_labels or ())

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> Trajectory:
        """Reads the canonical JSON object; keys that are not the format's own are ``extra``.

        Args:
            record: the object.
            folder: the images' paths are relative to it, and may not leave it.

        Raises:
            UserError: a key is missing, a misspelling of one that is missing, or of the wrong type,
                or a value out of range.
        """
        if "candidates" in record:
            raise UserError("has candidates, as a question to select from: expected a solution")
        extra = extra_columns(record, TRAJECTORY_KEYS)
        _need_keys(record, ("id", "question", "steps"))
        steps = _steps(record["steps"])
        return cls(
            id=_text(record, "id"),
            domain=_text(record, "domain") if record.get("domain") is not None else "",
            question=_text(record, "question"),
            steps=steps,
            images=_images(record, folder),
            step_labels=_labels(record.get("step_labels"), len(steps)),
            outcome=_boolean(record, "outcome"),
            answer=_optional_text(record, "answer"),
            extra=extra,
        )

    def to_record(self, folder: Path) -> dict[str, Any]:
        """The canonical JSON object, images relative to ``folder``, extra columns at the end.

        What is unknown is left out, but where an extra column could be a misspelling of its key.
        """
        record: dict[str, Any] = {"id": self.id}
        if self.domain:
            record["domain"] = self.domain
        record["question"] = self.question
        if self.images:
            record["images"] = relative_images(self.images, folder)
        record["steps"] = list(self.steps)
        if self.step_labels is not None:
            record["step_labels"] = list(self.step_labels)
        if self.outcome is not None:
            record["outcome"] = self.outcome
        if self.answer is not None:
            record["answer"] = self.answer
        for key in self.extra:
            for name in near_names(key, TRAJECTORY_KEYS):
                record.setdefault(name, None)
        return record | dict(self.extra)


@dataclass(frozen=True)
class Candidate:
    """One of the solutions to choose from.

    Attributes:
        steps: of the solution.
        answer: its final answer; None where it gives none.
        correct: whether that is right; None where unknown.
        step_labels: as of a trajectory.
        domain: its source, where there are several.
    """

    steps: tuple[str, ...]
    answer: str | None
    correct: bool | None
    step_labels: tuple[float | None, ...] | None = None
    domain: str = ""


@dataclass(frozen=True)
class SelectionQuestion:
    """A question with candidate solutions, of which the best is to be picked."""

    id: str
    question: str
    candidates: tuple[Candidate, ...]
    images: tuple[Path, ...] = ()
    answer: str | None = None

    def trajectories(self) -> list[Trajectory]:
        """One trajectory per candidate, ``id/index`` by name, the outcome being its correctness."""
        return [
            Trajectory(
                id=f"{self.id}/{index}",
                domain=candidate.domain,
                question=self.question,
                steps=candidate.steps,
                images=self.images,
                step_labels=candidate.step_labels,
                outcome=candidate.correct,
                answer=candidate.answer,
            )
            for index, candidate in enumerate(self.candidates)
        ]

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> SelectionQuestion:
        """Reads the canonical JSON object for selection.

        Args:
            record: the object.
            folder: the images' paths are relative to it, and may not leave it.

        Raises:
            UserError: a key is missing, unknown or of the wrong type.
        """
        if "steps" in record:
            raise UserError("has steps, as a solution: expected a question with candidates")
        check_keys(record, _QUESTION_KEYS, ("id", "question", "candidates"))
        found = record["candidates"]
        if not isinstance(found, list) or not found:
            raise UserError("candidates is empty or no list, expected at least one candidate")
        return cls(
            id=_text(record, "id"),
            question=_text(record, "question"),
            candidates=tuple(_candidate(item) for item in found),
            images=_images(record, folder),
            answer=_optional_text(record, "answer"),
        )

    def to_record(self, folder: Path) -> dict[str, Any]:
        """The canonical JSON object, images relative to ``folder``; what is unknown is left out."""
        record: dict[str, Any] = {"id": self.id, "question": self.question}
        if self.images:
            record["images"] = relative_images(self.images, folder)
        if self.answer is not None:
            record["answer"] = self.answer
        record["candidates"] = []
        for candidate in self.candidates:
            row: dict[str, Any] = {"steps": list(candidate.steps)}
            if candidate.correct is not None:
                row["correct"] = candidate.correct
            if candidate.answer is not None:
                row["answer"] = candidate.answer
            if candidate.step_labels is not None:
                row["step_labels"] = list(candidate.step_labels)
            if candidate.domain:
                row["domain"] = candidate.domain
            record["candidates"].append(row)
        return record


def group_candidates(trajectories: Sequence[Trajectory]) -> list[SelectionQuestion]:
    """Solutions with an outcome as questions to select from, in the order of first appearance."""
    groups: dict[Hashable, list[Trajectory]] = {}
    for row in trajectories:
        if row.outcome is not None:
            groups.setdefault(row.question_key, []).append(row)
    return [
        SelectionQuestion(
            id=rows[0].id,
            question=rows[0].question,
            images=rows[0].images,
            candidates=tuple(
                Candidate(row.steps, row.answer, bool(row.outcome), row.step_labels, row.domain)
                for row in rows
            ),
        )
        for rows in groups.values()
    ]


def _candidate(item: Any) -> Candidate:
    if not isinstance(item, dict):
        raise UserError(f"a candidate is {type(item).__name__}, expected an object")
    check_keys(item, _CANDIDATE_KEYS, ("steps",))
    steps = _steps(item["steps"])
    return Candidate(
        steps=steps,
        answer=_optional_text(item, "answer"),
        correct=_boolean(item, "correct"),
        step_labels=_labels(item.get("step_labels"), len(steps)),
        domain=_optional_text(item, "domain") or "",
    )


TRAJECTORY_KEYS = tuple(each.name for each in fields(Trajectory) if each.name != "extra")
_QUESTION_KEYS, _CANDIDATE_KEYS = (
    [each.name for each in fields(kind)] for kind in (SelectionQuestion, Candidate)
)


def check_keys(record: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    """Refuses a record with a key that is not known, or without one that is needed.

    Raises:
        UserError: names the key.
    """
    for key in record:
        if key not in known:
            raise UserError(unknown_name("key", str(key), known))
    _need_keys(record, needed)


def _need_keys(record: Mapping[str, Any], needed: Sequence[str]) -> None:
    for key in needed:
        if key not in record:
            raise UserError(f"has no {key!r}")


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key} is {shown(value)}, expected text")
    return value


def _optional_text(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{key} is {shown(value)}, expected text")
    return value


def _boolean(record: Mapping[str, Any], key: str) -> bool | None:
    value = record.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{key} is {shown(value)}, expected true or false")
    return value


def _steps(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UserError(f"steps is {type(value).__name__}, expected a list of texts")
    for number, step in enumerate(value, start=1):
        if not isinstance(step, str) or not step.strip():
            raise UserError(f"step {number} is {shown(step)}, expected text")
    return tuple(value)


def _labels(value: Any, steps: int) -> tuple[float | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != steps:
        found = f"{len(value)} labels" if isinstance(value, list) else type(value).__name__
        raise UserError(f"step_labels holds {found}, expected one for each of the {steps} steps")
    for number, label in enumerate(value, start=1):
        numeric = isinstance(label, int | float) and not isinstance(label, bool)
        if label is not None and not (numeric and 0 <= label <= 1):
            raise UserError(
                f"the label of step {number} is {shown(label)}, "
                "expected a number from 0 to 1 or null"
            )
    return tuple(None if label is None else float(label) for label in value)


def _images(record: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    value = record.get("images")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UserError(f"images is {shown(value)}, expected a list of paths")
    return tuple(image_path(folder, item) for item in value)
