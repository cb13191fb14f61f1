"""GSM8K's example model solutions (github.com/openai/grade-school-math), one row per solution."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dreamprm.data.adapters.format import format_of_rows
from dreamprm.data.adapters.reading import checked
from dreamprm.data.rows import need
from dreamprm.data.trajectory import Trajectory

# Some samples were cut off within an annotation.
_CALCULATOR = re.compile(r"<<[^<>]*(?:>>|$)")


def parse(row: dict[str, Any], where: str, path: Path) -> Trajectory:
    """One solution, its model being the domain.

    Calculator annotations ``<<3+4=7>>`` are left out: they are no part of what a solver writes for
    a reader, and would tell a reward model how the sampler worked. ``step_ok`` of the rows is left
    out too: it checks the arithmetic inside those annotations, not the step.

    Raises:
        UserError: a row lacks a key, or a value is wrong.
    """
    steps = [_CALCULATOR.sub("", step).strip() for step in need(row, "steps", list, where)]
    return checked(
        where,
        path.parent,
        id=need(row, "id", str, where),
        domain=need(row, "domain", str, where),
        question=need(row, "prompt", str, where),
        steps=[step for step in steps if step],
        outcome=need(row, "outcome", bool, where),
        answer=row.get("final_answer"),
    )


GSM8K = format_of_rows(
    "gsm8k-solutions",
    parse,
    lambda row: {"prompt", "steps", "outcome", "domain"} <= set(row),
    origin="grade_school_math/data/example_model_solutions.jsonl of "
    "https://github.com/openai/grade-school-math",
)
