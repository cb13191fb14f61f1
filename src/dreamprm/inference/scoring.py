"""Step scores for a file of solutions."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from dreamprm.data.formats import load_trajectories
from dreamprm.errors import UserError, need_whole
from dreamprm.inference.evaluation import aggregate
from dreamprm.models.reward_model import SETTINGS_FILE, ProcessRewardModel
from dreamprm.models.token_batches import MAX_TOKENS


def score_file(
    model: str,
    data: str,
    out: str | None,
    format: str = "canonical",
    images: str = "require",
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Writes one line ``{"id", "scores", "aggregated"}`` per solution, in the order of the file.

    Args:
        model: a folder of a reward model, or a run directory.
        data: a file of trajectories.
        out: where to write, whole or not at all; None for standard output.
        format: of the data.
        images: what a missing image means, see ``load_trajectories``.
        max_tokens: tokens per batch, padding included.

    Raises:
        UserError: there is no reward model, or the data are wrong.
    """
    need_whole("--max-tokens", max_tokens, 1)
    folder = next(
        (f for f in (Path(model), Path(model) / "model") if (f / SETTINGS_FILE).is_file()), None
    )
    if folder is None:
        raise UserError(f"there is no reward model in {model}: expected a file {SETTINGS_FILE}")
    rows = load_trajectories(data, format, images=images)
    prm = ProcessRewardModel.from_pretrained(folder)
    prm.to("cuda" if torch.cuda.is_available() else "cpu")
    logits = prm.step_logits(rows, max_tokens, progress="score")
    lines = []
    for row, steps in zip(rows, logits, strict=True):
        scores = torch.tensor(steps, dtype=torch.float64).sigmoid().tolist()
        total = torch.tensor(aggregate(steps), dtype=torch.float64).sigmoid().item()
        lines.append(
            json.dumps({"id": row.id, "scores": scores, "aggregated": total if steps else None})
        )
    text = "".join(line + "\n" for line in lines)
    if out is None:
        sys.stdout.write(text)
        return
    partial = Path(out + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(text)
    os.replace(partial, out)
