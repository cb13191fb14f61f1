"""What ``dreamprm evaluate --out`` writes, read into the few things that a report shows of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamprm.errors import UserError

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class Estimate:
    """A number, and the bounds of its confidence interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ModelEvaluation:
    """What was found of one model.

    Attributes:
        selection: for every way to select, its accuracy by N.
        steps: the step-level metrics by their names.
        reliability: for every bin of scores: the mean score, the share of right steps, the count.
        by_domain: for every domain, numbers by their names.
    """

    selection: dict[str, dict[int, Estimate]] = field(default_factory=dict)
    steps: dict[str, Estimate] = field(default_factory=dict)
    reliability: Sequence[tuple[float, float, int]] = ()
    by_domain: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A whole file: models by name, and what it says of how it was made."""

    models: dict[str, ModelEvaluation]
    notes: dict[str, Any] = field(default_factory=dict)


def read_evaluation(path: Path) -> Evaluation:
    """Reads a file of ``dreamprm evaluate``.

    Raises:
        UserError: there is none, or it is something else.
    """
    if not path.is_file():
        raise UserError(f"there is no evaluation {path}; dreamprm evaluate --out writes one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, expected an object")
    raise NotImplementedError
