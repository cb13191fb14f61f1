"""We-Math (github.com/We-Math/We-Math): multiple-choice questions with images, no solutions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.reading import checked
from dreamprm.data.rows import need, read_rows
from dreamprm.data.trajectory import Trajectory


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory without steps per question, ``answer`` being the letter that is right.

    The options stand below the question as they are written: their text cannot always be cut
    safely at ``;``.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    for where, row in read_rows(path):
        question, options = need(row, "question", str, where), need(row, "option", str, where)
        yield (
            where,
            checked(
                where,
                path.parent,
                id=need(row, "id", str, where),
                domain=row.get("domain") or path.stem,
                question=f"{question}\n{options}",
                steps=[],
                images=[need(row, "image", str, where)],
                answer=need(row, "answer", str, where),
            ),
        )


WE_MATH = Format(
    "we-math",
    read,
    lambda row: {"question", "option", "answer", "image", "knowledge"} <= set(row),
)
