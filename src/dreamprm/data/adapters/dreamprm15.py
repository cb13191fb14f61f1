"""DreamPRM-1.5's meta set (github.com/coder-qicao/DreamPRM-1.5): a conversation per candidate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.conversations import turns
from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.reading import Ids, Rows, checked, image_list, without_blank_steps
from dreamprm.data.paths import relative_images
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError

_QUESTION = "### Question:\n"
# Published paths are relative to the folder of the code, which has the file in its data folder.
_DATA_FOLDER = "../data/"
_LETTER = re.compile(r"(?:Answer:[ \t]*)?([A-Z])[ \t]*\Z", re.M)


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row; ids that repeat are told apart by ``#2``, ``#3``, ….

    Only ``true_false`` is a label. The replies of the conversation are "+" in every row, in wrong
    ones too: they hold places, and are left out, as is the system turn. The answer is the letter
    in the last line of ``response``, where there is one.

    Raises:
        UserError: a row lacks a key, or its turns are not as described.
    """
    rows, ids = Rows(path), Ids()
    for where, row in rows:
        found = turns(row, where)
        said = [turn.text for turn in found if turn.speaker == "human"]
        replies = [turn.text for turn in found if turn.speaker != "human"]
        if len(said) < 2:
            raise UserError(f"{where}: has {len(said)} human turns, expected a question and a step")
        if any(reply != "+" for reply in replies):
            rows.note("have other replies than the placeholder '+', which are left out")
        steps, _ = without_blank_steps(rows, said[1:], [None] * len(said[1:]))
        answer = _LETTER.search(need(row, "response", str, where).strip())
        yield (
            where,
            checked(
                where,
                path.parent,
                id=ids.apart(need(row, "id", str, where)),
                domain="meta",
                question=said[0].removeprefix(_QUESTION),
                steps=steps,
                images=[i.removeprefix(_DATA_FOLDER) for i in image_list(row, "image", where)],
                outcome=need(row, "true_false", bool, where),
                answer=answer[1] if answer else None,
            ),
        )


def write(rows: Iterable[Trajectory], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per trajectory, with "+" in every reply's place and no system turn.

    Raises:
        UserError: an image is outside the folder.
    """
    ids = Ids()
    for row in rows:
        images = relative_images(row.images, folder)
        conversation = [{"from": "human", "value": _QUESTION + row.question}]
        for step in row.steps:
            conversation.append({"from": "human", "value": step})
            conversation.append({"from": "gpt", "value": "+"})
        yield {
            "id": ids.again(row.id),
            "response": "\n".join(row.steps),
            "true_false": row.outcome,
            "image": _DATA_FOLDER + images[0] if images else "",
            "conversations": conversation,
        }


DREAMPRM15 = Format(
    "dreamprm15",
    read,
    lambda row: {"conversations", "true_false"} <= set(row),
    write,
    cannot_hold=frozenset(
        {"domain", "images after the first", "step labels", "answer", "extra columns"}
    ),
    needs=frozenset({"a step", "an outcome"}),
)
