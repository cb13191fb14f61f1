"""Step scores for a file of solutions."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dreamprm.data.formats import load_trajectories
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, need_whole
from dreamprm.journal import Journal, is_finished, journal_path
from dreamprm.models.fingerprint import reading_digest, weights_digest
from dreamprm.models.reward_model import SETTINGS_FILE, ProcessRewardModel
from dreamprm.models.scoring_batches import MAX_TOKENS, Tally
from dreamprm.progress import progress_bar
from dreamprm.scoring.aggregation import aggregate, probabilities, probability

log = logging.getLogger("dreamprm")


def score_file(
    model: str,
    data: str,
    out: str | None,
    format: str = "canonical",
    images: str = "require",
    max_tokens: int = MAX_TOKENS,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes one line ``{"id", "scores", "aggregated"}`` per solution, in the order of the file.

    Args:
        model: a folder of a reward model, or a run directory.
        data: a file of trajectories.
        out: where to write, whole or not at all; what is scored so far stands in ``out.partial``.
            None for standard output.
        format: of the data.
        images: what a missing image means, see ``load_trajectories``.
        max_tokens: tokens per batch, padding included.
        resume: continue a scoring that was interrupted; starts anew where there is none.
        overwrite: replace an output that is there, once the new one is whole.

    Raises:
        UserError: there is no reward model, the data are wrong, or there is an output already.
    """
    need_whole("--max-tokens", max_tokens, 1)
    folder = find_model(model)
    partial = _partial(out, resume, overwrite)
    rows = load_trajectories(data, format, images=images)
    prm = ProcessRewardModel.from_pretrained(folder)
    journal = None
    if partial is not None and out is not None:
        of = fingerprint(prm, rows, max_tokens)
        if resume and is_finished(out, of):
            log.info("%s is complete", out)
            return
        if overwrite:
            partial.unlink(missing_ok=True)
        journal = Journal(partial, of)
    logits = journalled_logits(prm, rows, max_tokens, journal, "score")
    lines = [_line(row, found) for row, found in zip(rows, logits, strict=True)]
    if out is None or journal is None:
        sys.stdout.writelines(line + "\n" for line in lines)
        return
    journal.finish(out, lines)


def find_model(path: str) -> Path:
    """The folder of a reward model: ``path``, or ``model`` in it.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / SETTINGS_FILE).is_file():
            return folder
    raise UserError(f"there is no reward model in {path}: expected a file {SETTINGS_FILE}")


def journalled_logits(
    prm: ProcessRewardModel,
    rows: Sequence[Trajectory],
    max_tokens: int,
    journal: Journal | None,
    progress: str,
) -> list[list[float]]:
    """The logit of every step, each batch written down as it comes; what is there is not repeated.

    Args:
        prm: the reward model; moved to the GPU where there is one.
        rows: the solutions; none of a solution without steps.
        max_tokens: tokens per batch, padding included.
        journal: of the batches; None to keep none.
        progress: what the progress bar is called.
    """
    prm.to("cuda" if torch.cuda.is_available() else "cpu")
    # A batch is a function of the data and the budget, so the batches that follow are the ones that
    # would have followed.
    batches = journal.pieces if journal else []
    logits = {int(row): found for batch in batches for row, found in batch.items()}
    if journal and logits:
        log.info("%s continues after %d solutions", journal.path, len(logits))
    tally = Tally()
    total = sum(bool(row.steps) for row in rows)
    with progress_bar(progress, total, "solution", initial=len(logits)) as bar:
        for batch, found in prm.scored_batches(rows, max_tokens, frozenset(logits)):
            if journal:
                journal.add(dict(zip(map(str, batch.rows), found, strict=True)))
            logits.update(zip(batch.rows, found, strict=True))
            tally.add(batch)
            bar.update(len(found))
    log.info("%s", tally)
    return [logits.get(i, []) for i in range(len(rows))]


def fingerprint(
    model: ProcessRewardModel, rows: Sequence[Trajectory], max_tokens: int
) -> dict[str, Any]:
    """What the scores are a function of; equal for equal weights and data, wherever they lie."""
    solutions = hashlib.sha256()
    digests = {path: _digest_of(path) for row in rows for path in row.images}
    for row in rows:
        images = [digests[path] for path in row.images]
        solutions.update(json.dumps([row.id, row.question, row.steps, images]).encode())
    return {
        "model": weights_digest(model, model.settings),
        "tokenizer, image processor or config": reading_digest(model),
        "solutions": solutions.hexdigest(),
        "--max-tokens": max_tokens,
    }


def _digest_of(path: Path) -> str | None:
    """Of a file's bytes; None where there is none, of which the encoder says what is wrong."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _line(row: Trajectory, logits: list[float]) -> str:
    total = probability(aggregate(logits)) if logits else None
    return json.dumps({"id": row.id, "scores": probabilities(logits), "aggregated": total})


def _partial(out: str | None, resume: bool, overwrite: bool) -> Path | None:
    """The file of what is scored so far; refuses to lose an output that is there."""
    if out is None:
        if resume or overwrite:
            raise UserError("--resume and --overwrite are for an output file: give one by --out")
        return None
    return journal_path(out, "a scoring", resume, overwrite)
