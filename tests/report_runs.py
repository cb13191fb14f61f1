"""Run directories made by hand, with all that a report can show."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dreamprm.evaluation.evaluate_steps import METRICS
from dreamprm.reporting.examples import small_image
from dreamprm.tasks.prm.words import WORDS
from dreamprm.words import as_json

HOSTILE = '<script>window.hit=1</script><img src=x onerror="window.hit=1">'
HOSTILE_NAMES = (
    HOSTILE,
    "_underscore",
    "a$b$c_{",
    "control\x00\x1b\ud800",
    "\u202eright-to-left",
    "x" * 300,
    "日本語",
    "&amp; \"'</style>",
    "tab\tand\nline",
)


def write_run(
    folder: Path,
    names: Sequence[str] = ("clean", "noisy", "inverted"),
    steps: int = 60,
    text: str = "",
    evaluated: bool = True,
) -> Path:
    """Writes a run.

    Args:
        folder: where.
        names: of the domains.
        steps: of the lower level; one in ten is logged.
        text: put wherever a text may be.
        evaluated: with an evaluation.
    """
    folder.mkdir(parents=True)
    draw = random.Random(0)
    drift = {name: draw.gauss(0, 1.2) for name in names}
    rows: list[dict[str, float]] = []
    for step in range(10, steps + 1, 10):
        raw = {name: math.exp(drift[name] * step / steps) for name in names}
        mean = sum(raw.values()) / len(raw)
        rows.append(
            {
                "step": step,
                "prm/loss": 0.2 * math.exp(-3 * step / steps) + 0.01 * draw.random(),
                "prm/unweighted_loss": 0.2,
                "weighting/loss": 0.7 * math.exp(-2 * step / steps),
                "prm/hypergradient_cosine": 0.9 + 0.1 * draw.random(),
            }
            | {f"weights/{name}": value / mean for name, value in raw.items()}
        )
        if step % (steps // 3) == 0:
            selection = {f"validation/test_best_of_{n}": 0.3 + 0.1 * n for n in (2, 4)}
            rows.append({"step": step, "validation/outcome_auc": 0.5 + 0.4 * step / steps}
                        | selection)  # fmt: skip
    _write_lines(folder / "metrics.jsonl", rows)
    weights = {n: row for n in names for row in [_last(rows, f"weights/{n}")]}
    _write(folder / "weights.json", weights)
    numbers = {"best_of_n": 0.51, "random_pick": 0.3, "pass_at_n": 0.9, "step_auc": 0.7}
    summary = {
        "meta_loss": f"pairwise{text}",
        "hypergradient": f"identity{text}",
        "seed": 0,
        "runs": {"uniform": numbers | {"best_of_n": 0.4}, "domain_table": numbers},
        "weights": weights,
        "qualities": dict.fromkeys(names, f"clean{text}"),
        "versions": {"python": f"3.11{text}", "torch": "2.13.0+cpu", "betty-ml": "0.2.1"},
    }
    _write(folder / "summary.json", summary)
    about = {"words": as_json(WORDS), "steps": steps, "finished": True, "step": steps}
    _write(folder / "run.json", about)
    config = {"seed": 0, "steps": steps, "meta_loss": f"pairwise{text}", "out": text or "x"}
    (folder / "config.yaml").write_text(
        "".join(f"{k}: {json.dumps(v)}\n" for k, v in config.items())
    )
    picture = folder / "picture.png"
    Image.new("RGBA", (600, 300), (30, 90, 200, 128)).save(picture)

    def solution(right: bool) -> dict[str, Any]:
        return {
            "steps": [f"Long step {text} " + "x" * 200, "</li></ol> $a_b$"],
            "scores": [0.93 if right else 0.31, 0.12],
            "labels": [1.0, None],
            "aggregated": 0.6,
            "correct": right,
            "answer": text or None,
            "steps_left_out": 3,
        }

    examples = [
        {
            "id": f"question-{right}{text}",
            "question": f"Which? {text}",
            "images": [small_image(picture)],
            "candidates": 4,
            "best": solution(right),
            "worst": solution(not right),
        }
        for right in (True, False)
    ]
    _write_lines(folder / "examples.jsonl", examples)
    if evaluated:
        _write(folder / "evaluation.json", evaluation(["model" + text], text))
    return folder


def evaluation(models: Sequence[str], text: str = "") -> dict[str, Any]:
    """A file of ``dreamprm evaluate``, as docs/evaluation.md says."""

    def curve(start: float) -> dict[str, list[float]]:
        accuracy = [start, start + 0.1, start + 0.15]
        return {
            "accuracy": accuracy,
            "low": [value - 0.05 for value in accuracy],
            "high": [value + 0.05 for value in accuracy],
        }

    unknown = {"value": None, "low": None, "high": None}
    known = {"value": 0.8, "low": 0.7, "high": 0.9}
    metrics = dict.fromkeys(METRICS, unknown) | dict.fromkeys(("auc", "macro_f1", "ece"), known)
    edges = [(b / 10, 5 if b % 3 else 0) for b in range(10)]
    reliability = [
        {"low": low, "high": low + 0.1, "count": count,
         "score": low + 0.05 if count else None, "label": low**1.2 if count else None}
        for low, count in edges
    ]  # fmt: skip
    total = {"solutions": 9, "steps": 30, "share_right": 0.6, "processbench_best": None}
    total |= metrics | {"reliability": reliability}
    return {
        "schema": "dreamprm-evaluation-1",
        "settings": {
            "aggregations": ["mean_logit", "min"], "bootstrap": 100, "confidence": 0.95,
            "seed": 0, "threshold": 0.5, "threshold_domain": None, "bins": 10,
        },
        "models": list(models),
        "selection": [
            {
                "name": f"test{text}",
                "path": "test.jsonl",
                "questions": 20,
                "candidates": [4, 4],
                "n": [1, 2, 4],
                "exact_votes": [True, True, True],
                "baselines": {"random_pick": curve(0.2), "majority_vote": curve(0.3)},
                "models": {
                    model: {
                        "summary": {"best_of_n": 0.55, "step_auc": None},
                        "rules": {"mean_logit": curve(0.4), "vote+mean_logit": curve(0.41)},
                    }
                    for model in models
                },
                "comparisons": [
                    {"first": model, "second": "majority_vote", "rule": "mean_logit",
                     "difference": 0.1, "low": 0.02, "high": 0.18, "p_bootstrap": 0.02,
                     "only_first": 4, "only_second": 2, "p_mcnemar": 0.03}
                    for model in models
                ],
                "picks": [],
            }
        ],
        "steps": [
            {
                "name": f"test{text}",
                "path": "test.jsonl",
                "models": {
                    model: {
                        "threshold": 0.5,
                        "total": total,
                        "domains": {"a": total, f"b{text}": total},
                        "mean": {"auc": 0.8, "processbench_f1": None, "macro_f1": 0.8},
                    }
                    for model in models
                },
            }
        ],
        "examples": [],
    }  # fmt: skip


def _last(rows: Sequence[dict[str, float]], name: str) -> float:
    return next(row[name] for row in reversed(rows) if name in row)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
