"""The best candidate of every question in a file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamprm.data.formats import load_questions, load_trajectories
from dreamprm.data.rows import read_rows
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import need_whole
from dreamprm.journal import Journal, is_finished, journal_path
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.scoring_batches import MAX_TOKENS
from dreamprm.scoring.aggregation import probabilities, split_rule
from dreamprm.scoring.files import find_model, fingerprint, journalled_logits
from dreamprm.scoring.selection import choose

log = logging.getLogger("dreamprm")


@dataclass(frozen=True)
class CandidateSet:
    """The solutions of one question, which need not be known to be right or wrong."""

    id: str
    solutions: tuple[Trajectory, ...]


def select_file(
    model: str,
    data: str,
    out: str,
    aggregation: str = "mean_logit",
    n: int | None = None,
    format: str = "canonical",
    images: str = "require",
    max_tokens: int = MAX_TOKENS,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes one line per question, in the order of the file: the choice and every score.

    A line is ``{"id", "aggregation", "choice", "solution", "answer", "margin", "candidates"}``;
    see docs/evaluation.md.

    Args:
        model: a folder of a reward model, or a run directory.
        data: a file of questions with candidates, or of trajectories.
        out: where to write, whole or not at all; what is scored so far stands in ``out.partial``.
        aggregation: a key of ``AGGREGATIONS``, ``vote`` or ``vote+AGGREGATION``.
        n: take the first so many candidates of a question; None for all.
        format: of the data.
        images: what a missing image means, see ``load_trajectories``.
        max_tokens: tokens per batch, padding included.
        resume: continue a selection that was interrupted; starts anew where there is none.
        overwrite: replace an output that is there, once the new one is whole.

    Raises:
        UserError: there is no reward model or rule, the data are wrong, or there is an output.
        FloatingPointError: the model's scores are no numbers.
    """
    need_whole("--max-tokens", max_tokens, 1)
    if n is not None:
        need_whole("--n", n, 1)
    split_rule(aggregation)
    folder = find_model(model)
    partial = journal_path(out, "a selection", resume, overwrite)
    sets = load_candidate_sets(data, format, images)
    if all(len(found.solutions) == 1 for found in sets):
        log.warning("%s holds one solution for every question: there is nothing to choose", data)
    if n is not None:
        sets = [replace(found, solutions=found.solutions[:n]) for found in sets]
    prm = ProcessRewardModel.from_pretrained(folder)
    rows = [row for found in sets for row in found.solutions]
    of = fingerprint(prm, rows, max_tokens)
    # What the choice is a function of, but the scores are not: by another rule they are as good.
    rule = {"--aggregation": aggregation, "answers": _answers(rows)}
    if resume and is_finished(out, of | rule):
        log.info("%s is complete", out)
        return
    if overwrite:
        partial.unlink(missing_ok=True)
    journal = Journal(partial, of)
    logits = iter(journalled_logits(prm, rows, max_tokens, journal, "select"))
    lines = [_line(found, [next(logits) for _ in found.solutions], aggregation) for found in sets]
    journal.finish(out, lines, rule)


def load_candidate_sets(
    path: str, format: str = "canonical", images: str = "require"
) -> list[CandidateSet]:
    """Reads questions with candidates, or trajectories, those of one question together.

    Questions stand in the order in which they first appear; one that is made of trajectories has
    the id of the first of them.

    Raises:
        UserError: the file is missing, empty or wrong.
    """
    if format == "canonical" and holds_candidates(Path(path)):
        questions = load_questions(path, images=images, judged=False)
        return [CandidateSet(q.id, tuple(q.trajectories())) for q in questions]
    groups: dict[Hashable, list[Trajectory]] = {}
    for row in load_trajectories(path, format, images=images):
        groups.setdefault(row.question_key, []).append(row)
    return [CandidateSet(rows[0].id, tuple(rows)) for rows in groups.values()]


def holds_candidates(path: Path) -> bool:
    """Whether the first row of a file is a question with candidates."""
    first = next(iter(read_rows(path)), None)
    return first is not None and "candidates" in first[1]


def _line(found: CandidateSet, logits: Sequence[list[float]], aggregation: str) -> str:
    solutions = found.solutions
    selection = choose(logits, aggregation, [row.answer for row in solutions])
    candidates: list[dict[str, Any]] = []
    for i, (row, steps) in enumerate(zip(solutions, logits, strict=True)):
        candidate: dict[str, Any] = {
            "id": row.id,
            "scores": probabilities(steps),
            "aggregated": selection.aggregated[i] if steps else None,
        }
        if selection.votes is not None:
            candidate["votes"] = selection.votes[i]
        candidates.append(candidate)
    chosen = solutions[selection.choice]
    line = {
        "id": found.id,
        "aggregation": aggregation,
        "choice": selection.choice,
        "solution": chosen.id,
        "answer": chosen.answer,
        "margin": selection.margin,
        "candidates": candidates,
    }
    return json.dumps(line)


def _answers(rows: Sequence[Trajectory]) -> str:
    """A digest of the ids and answers, which votes and the output are of."""
    return hashlib.sha256(json.dumps([[row.id, row.answer] for row in rows]).encode()).hexdigest()
