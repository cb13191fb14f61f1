"""The digits task: the labels are what they say, and learned weights beat none."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from dreamprm import load_config
from dreamprm.hypergradients import METHODS
from dreamprm.run_directory.opening import open_run
from dreamprm.tasks.noisy_labels import build, noisy_digits


def test_only_unreliable_annotators_flip_labels() -> None:
    noisy = noisy_digits(6, 4, 0.4, meta=100, test=600, seed=1)
    clean = noisy_digits(6, 4, 0.0, meta=100, test=600, seed=1)
    assert (len(noisy.train), len(noisy.meta), len(noisy.test)) == (1097, 100, 600)
    assert all(a["label"] == b["label"] for a, b in zip(noisy.meta, clean.meta, strict=True))
    assert torch.equal(noisy.test.label, clean.test.label)
    for annotator in range(6):
        flips = [
            bool(a["label"] != b["label"])
            for a, b in zip(noisy.train, clean.train, strict=True)
            if a["annotator"] == f"annotator-{annotator}"
        ]
        assert sum(flips) == (round(0.4 * len(flips)) if annotator >= 2 else 0)


def run(*overrides: str) -> tuple[float, dict[str, float], torch.Tensor | None]:
    """Accuracy on the test images, the weights of the annotators, and those of the images."""
    with TemporaryDirectory() as folder:
        config = load_config("noisy_labels", ["steps=600", f"out={folder}/run", *overrides])
        with open_run(Path(config.out), config, resume=False, overwrite=False) as opened:
            task = build(config, opened)
            engine = task.engine(config, Path(config.out))
            engine.config.progress = None
            engine.run()
            numbers = task.end(engine, Path(config.out))
    return numbers["accuracy"], engine.weights(), engine.row_weights()


@cache
def plain() -> float:
    """Without an upper problem, whose method then does not matter."""
    return run("weighting=uniform")[0]


@pytest.mark.parametrize("method", METHODS)
def test_learned_weights_beat_none(method: str) -> None:
    learned, weights, _ = run(f"hypergradient={method}")
    values = list(weights.values())
    assert learned > plain() + 0.03
    assert min(values[:2]) > max(values[2:])


def test_annotators_and_images_are_weighted_together() -> None:
    learned, weights, by_row = run("weighting=domain_and_rows")
    values = list(weights.values())
    assert learned > plain() + 0.03
    assert min(values[:2]) > max(values[2:])
    assert by_row is not None
    train = noisy_digits(6, 4, 0.4, meta=100, test=600, seed=0).train.columns
    clean = torch.tensor(train["clean"])
    # Of one annotator's images, what is left is the rows' own part.
    for name in ("annotator-2", "annotator-5"):
        mine = torch.tensor([each == name for each in train["annotator"]])
        assert by_row[mine & clean].mean() > 1.1 * by_row[mine & ~clean].mean()
    assert by_row.mean().item() == pytest.approx(1, abs=0.2)
