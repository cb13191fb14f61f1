"""Weights that are given: those that a run has learned, or a mapping of one's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.errors import UserError
from dreamprm.run_directory.names import WEIGHTS_FILE
from dreamprm.weighting.rows import Rows, grouped


class FixedWeights(nn.Module):
    """A weight for each of n training rows that nobody learns.

    Args:
        named: the weight of every group by its name.
        weights: [n], of every row.
    """

    def __init__(self, named: Mapping[str, float], weights: Tensor) -> None:
        super().__init__()
        self.named, self.weights = dict(named), weights

    def forward(self, batch: dict[str, Any], losses: Tensor) -> Tensor:
        """The weight of every sample, [b], by ``batch["index"]`` [b]."""
        if self.weights.device != losses.device:
            self.weights = self.weights.to(losses.device)
        return self.weights[batch["index"]].to(losses.dtype)

    def named_weights(self) -> dict[str, float]:
        """The weight of every group by its name; none where every row has its own."""
        return self.named


def fixed(
    rows: Rows,
    *,
    file: str | None = None,
    weights: Mapping[str, float] | None = None,
    column: str | None = None,
) -> FixedWeights:
    """Weights by the values of a column, as they are given.

    Args:
        rows: the training rows.
        file: a run directory, or a JSON object of weights by name as its ``weights.json``.
        weights: the same, in the config.
        column: whose values the names are; ``id`` where every row has its own. By default the one
            that the task's data are grouped by.

    Raises:
        UserError: there are not just one of ``file`` and ``weights``, the file is not what it must
            be, or a row has no weight.
    """
    if (file is None) == (weights is None):
        raise UserError("weighting=fixed needs weighting_options.file or .weights, one of them")
    given, where = (_read(Path(file)) if file is not None
                    else (weights, "weighting_options.weights"))  # fmt: skip
    assert given is not None
    for name, value in given.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise UserError(f"{where}: the weight of {name!r} is {value!r}, expected a number")
    column = column or rows.group
    own = column == "id"
    if own:
        names = [str(name) for name in rows.names()]
        places = torch.arange(len(names))
    else:
        names, places = grouped(rows, column)
    by_name = {str(name): float(value) for name, value in given.items()}
    missing = [name for name in names if name not in by_name]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{where} has no weight for {column} {missing[0]!r}{more}; its names are such as "
            f"{', '.join(map(repr, list(by_name)[:3]))}: weighting_options.column says of which "
            "column they are, id for one a row"
        )
    values = torch.tensor([by_name[name] for name in names], dtype=torch.float64)
    return FixedWeights({} if own else dict(zip(names, values.tolist(), strict=True)),
                        values[places])  # fmt: skip


def _read(path: Path) -> tuple[dict[str, Any], str]:
    path = path / WEIGHTS_FILE if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read weights from {path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, expected weights by name")
    return found, str(path)
