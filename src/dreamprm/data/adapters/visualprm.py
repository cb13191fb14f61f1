"""The three formats of the VisualPRM data (arXiv 2503.10291), published at OpenGVLab.

``visualprm400k``: conversations with a step a turn and "+" or "-" as the reply, as
visualprm_data_pipeline_postprocess.py of github.com/OpenGVLab/InternVL makes them.
``visualprm400k-raw``: what they are made of, ``steps_with_score`` with the share of completions
that ended right. ``visualprocessbench``: human judgements of every step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.conversations import Turn, turns
from dreamprm.data.adapters.format import Format, hard_label
from dreamprm.data.adapters.reading import Rows, image_list, one_of
from dreamprm.data.paths import relative_images
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

_SIGNS = {"+": 1.0, "-": 0.0}
_JUDGEMENTS = {1: 1.0, 0: None, -1: 0.0}
_FIRST_TURN = re.compile(r"\s*### Question:\n(.*?)\n+### Solution Process:\n(.*)", re.S)
# Where InternVL puts the images; they always come first.
_PLACEHOLDERS = re.compile(r"(?:<image>\n?)+")


def read_conversations(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per conversation; the file's name is the domain, the row's number the id.

    "+" is the label 1 and "-" 0. Left out: the system turn, which is a prompt, and ``id``, which is
    −1 in every row.

    Raises:
        UserError: a row lacks a key, or its turns are not as described.
    """
    rows = Rows(path)
    for where, row in rows:
        found = turns(row, where)
        texts, signs = found[0::2], found[1::2]
        _expect(texts, "human", where)
        _expect(signs, "gpt", where)
        first = _FIRST_TURN.fullmatch(texts[0].text) if texts else None
        if first is None or len(texts) != len(signs):
            raise UserError(
                f"{where}: the conversation does not begin with '### Question:' and '### Solution "
                "Process:' in one turn, or does not end with a reply"
            )
        yield rows.solution(
            where,
            [first[2], *(turn.text for turn in texts[1:])],
            [one_of(where, "a reply", turn.text.strip(), _SIGNS) for turn in signs],
            question=_PLACEHOLDERS.sub("", first[1], count=1) if row.get("image") else first[1],
            images=image_list(row, "image", where),
        )


def _expect(found: list[Turn], speaker: str, where: str) -> None:
    for turn in found:
        if turn.speaker != speaker:
            raise UserError(f"{where}: a turn is from {turn.speaker!r}, expected {speaker!r}")


def write_conversations(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One conversation per trajectory, without a system turn.

    Raises:
        UserError: an image is outside the folder.
    """
    for row in rows:
        images = relative_images(row.images, folder)
        question = "<image>\n" * len(images) + row.question
        first, *others = row.steps
        texts = [f"### Question:\n{question}\n\n### Solution Process:\n{first}", *others]
        conversation = []
        for text, label in zip(texts, row.step_labels or (), strict=True):
            conversation.append({"from": "human", "value": text})
            sign = "+" if label is not None and hard_label(label) else "-"
            conversation.append({"from": "gpt", "value": sign})
        yield {"id": -1, **_image_key(images), "conversations": conversation}


def _image_key(images: list[str]) -> dict[str, str | list[str]]:
    if not images:
        return {}
    return {"image": images[0] if len(images) == 1 else images}


def read_raw(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row, each step's ``score`` being its label.

    Left out: ``answer``, which is the right answer and not the solution's.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    rows = Rows(path)
    for where, row in rows:
        found = need(row, "steps_with_score", list, where)
        if not all(isinstance(item, dict) for item in found):
            raise UserError(f"{where}: steps_with_score holds something else than objects")
        yield rows.solution(
            where,
            [need(item, "step", str, where) for item in found],
            [need(item, "score", (int, float), where) for item in found],
            question=_PLACEHOLDERS.sub("", need(row, "question", str, where), count=1),
            images=image_list(row, "image", where),
        )


def read_bench(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row, its ``data_source`` being the domain, the row's number the id.

    ``process_correctness`` 1 is the label 1, −1 is 0, and 0 (neutral, which the benchmark passes
    over) none. Left out: ``policy_model``, and ``answer``, which is the right answer.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    rows = Rows(path)
    for where, row in rows:
        response = need(row, "response", dict, where)
        texts = need(response, "steps", list, where)
        values = need(response, "process_correctness", list, where)
        if len(texts) != len(values):
            raise UserError(f"{where}: has {len(values)} judgements of {len(texts)} steps")
        found = [one_of(where, "process_correctness", value, _JUDGEMENTS) for value in values]
        yield rows.solution(
            where,
            texts,
            found,
            domain=row.get("data_source") or path.stem,
            question=need(row, "question", str, where),
            images=image_list(row, "image", where),
        )


def write_bench(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory, a step without a label being neutral.

    Raises:
        UserError: an image is outside the folder.
    """
    for row in rows:
        yield {
            "image": relative_images(row.images, folder),
            "question": row.question,
            "response": {
                "steps": list(row.steps),
                "process_correctness": [
                    0 if label is None else 1 if hard_label(label) else -1
                    for label in row.step_labels or ()
                ],
            },
            "data_source": row.domain,
        }


def _is_conversation(row: Any) -> bool:
    found = row.get("conversations")
    return (
        isinstance(found, list)
        and "true_false" not in row
        and any("### Solution Process:" in str(turn) for turn in found[:2])
    )


VISUALPRM400K = Format(
    "visualprm400k",
    read_conversations,
    _is_conversation,
    write_conversations,
    cannot_hold=frozenset(
        {"id", "domain", "labels between 0 and 1", "outcome", "answer", "extra columns"}
    ),
    needs=frozenset({"a label for every step"}),
)
VISUALPRM400K_RAW = Format("visualprm400k-raw", read_raw, lambda row: "steps_with_score" in row)
VISUALPROCESSBENCH = Format(
    "visualprocessbench",
    read_bench,
    lambda row: isinstance(row.get("response"), dict) and "process_correctness" in row["response"],
    write_bench,
    cannot_hold=frozenset({"id", "labels between 0 and 1", "outcome", "answer", "extra columns"}),
    needs=frozenset({"a labelled step"}),
)
