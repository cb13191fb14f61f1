"""We-Math (github.com/We-Math/We-Math): multiple-choice questions with images, no solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import format_of_rows
from dreamprm.data.adapters.reading import checked
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory


def parse(row: dict[str, Any], where: str, path: Path) -> Trajectory:
    """A question as a trajectory without steps, ``answer`` being the letter that is right.

    The options stand below the question as they are written: their text cannot always be cut
    safely at ``;``.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    question, options = need(row, "question", str, where), need(row, "option", str, where)
    return checked(
        where,
        path.parent,
        id=need(row, "id", str, where),
        domain=row.get("domain") or path.stem,
        question=f"{question}\n{options}",
        steps=[],
        images=[need(row, "image", str, where)],
        answer=need(row, "answer", str, where),
    )


WE_MATH = format_of_rows(
    "we-math",
    parse,
    lambda row: {"question", "option", "answer", "image", "knowledge"} <= set(row),
)
