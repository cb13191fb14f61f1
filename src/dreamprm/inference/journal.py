"""What a scoring has done so far, on disk: a killed one continues with its next batch.

A journal is JSON Lines: what the scoring is of, then one line per batch. A line is all or nothing,
so a batch is scored or it is not; and as a batch is a function of the data and the budget, the
batches that follow are the ones that would have followed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.reward_model import ProcessRewardModel


def fingerprint(
    model: ProcessRewardModel, rows: Sequence[Trajectory], max_tokens: int
) -> dict[str, Any]:
    """What the scores are a function of; equal for equal weights and data, wherever they lie."""
    weights = hashlib.sha256(json.dumps(model.settings).encode())
    for name, tensor in model.state_dict().items():
        bits = tensor.view(
            {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        )
        weights.update(f"{name} {tuple(tensor.shape)} {int(bits.sum())}\n".encode())
    solutions = hashlib.sha256()
    for row in rows:
        names = [path.name for path in row.images]
        solutions.update(json.dumps([row.id, row.question, row.steps, names]).encode())
    return {
        "model": weights.hexdigest(),
        "solutions": solutions.hexdigest(),
        "--max-tokens": max_tokens,
    }


class Journal:
    """The batches that are scored, in order; a file from the first of them on.

    Args:
        path: of the file; what it holds is continued.
        of: the fingerprint of the scoring.

    Attributes:
        logits: of the steps of every solution that is scored, by its index.

    Raises:
        UserError: the file is of another scoring, or cannot be written.
    """

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self.path, self.of = path, of
        self.logits: dict[int, list[float]] = {}
        lines = _whole_lines(path) if path.is_file() else []
        if lines:
            header = json.loads(lines[0])
            changed = [key for key, value in of.items() if header.get(key) != value]
            if changed:
                raise UserError(
                    f"{path} was begun with another {', '.join(changed)}: "
                    "resume with the same, or --overwrite it"
                )
        for line in lines[1:]:
            self.logits.update({int(row): found for row, found in json.loads(line).items()})
        # A line that the kill tore goes; its batch is scored again.
        self._kept = sum(map(len, lines))
        self._file: BinaryIO | None = None

    def add(self, rows: Sequence[int], logits: Sequence[list[float]]) -> None:
        """Writes down one batch: the indices of its solutions and the logits of their steps."""
        batch = dict(zip(rows, logits, strict=True))
        lines = [json.dumps(batch)]
        try:
            if self._file is None:
                self._file = self.path.open("ab")
                self._file.truncate(self._kept)
                lines = lines if self._kept else [json.dumps(self.of), *lines]
            self._file.write("".join(line + "\n" for line in lines).encode())
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        self.logits.update(batch)

    def remove(self) -> None:
        """Deletes the file, which has done its service."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[bytes]:
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            break
        lines.append(line)
    return lines
