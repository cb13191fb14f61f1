"""PRMBench (github.com/ssmisya/PRMBench): solutions with planted errors of nine kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamprm.data.adapters.format import Format
from dreamprm.data.adapters.reading import Rows
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError


def read(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """One trajectory per row: the modified question and solution, the kind of error as its domain.

    ``error_steps`` counts from 1: those steps are labelled 0, the others 1. Numbers beyond the last
    step are left out; a row that has no other has no labels. ``idx`` repeats across kinds, so the
    id is ``idx/kind``.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    rows = Rows(path)
    for where, row in rows:
        texts = need(row, "modified_process", list, where)
        errors = need(row, "error_steps", list, where)
        for error in errors:
            if isinstance(error, bool) or not isinstance(error, int) or error < 1:
                raise UserError(f"{where}: error_steps has {error!r}, expected a number from 1")
        inside = {error for error in errors if error <= len(texts)}
        if len(inside) < len(set(errors)):
            rows.note("name an error step beyond the last step, which is left out")
        found: list[float | None] = [
            None if errors and not inside else float(number not in inside)
            for number in range(1, len(texts) + 1)
        ]
        kind = need(row, "classification", str, where)
        yield rows.solution(
            where,
            texts,
            found,
            id=f"{need(row, 'idx', str, where)}/{kind}",
            domain=kind,
            question=need(row, "modified_question", str, where),
        )


PRMBENCH = Format(
    "prmbench", read, lambda row: {"modified_process", "error_steps", "classification"} <= set(row)
)
