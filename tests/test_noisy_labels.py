"""The digits task: the labels are what they say, and learned weights beat none."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks.noisy_labels import accuracy_and_weights
from dreamprm.hypergradients import METHODS
from dreamprm.problems.noisy_labels import noisy_digits


def test_only_unreliable_annotators_flip_labels() -> None:
    noisy = noisy_digits(6, 4, 0.4, meta=100, test=600, seed=1)
    clean = noisy_digits(6, 4, 0.0, meta=100, test=600, seed=1)
    assert (len(noisy.train), len(noisy.meta), len(noisy.test["label"])) == (1097, 100, 600)
    assert all(a["label"] == b["label"] for a, b in zip(noisy.meta, clean.meta, strict=True))
    assert torch.equal(noisy.test["label"], clean.test["label"])
    for annotator in range(6):
        flips = [
            bool(a["label"] != b["label"])
            for a, b in zip(noisy.train, clean.train, strict=True)
            if a["domain"] == annotator
        ]
        assert sum(flips) == (round(0.4 * len(flips)) if annotator >= 2 else 0)


@cache
def plain() -> float:
    """Without an upper problem, whose method then does not matter."""
    return accuracy_and_weights(0, False, "identity", steps=600)[0]


@pytest.mark.parametrize("method", METHODS)
def test_learned_weights_beat_none(method: str) -> None:
    learned, weights = accuracy_and_weights(0, True, method, steps=600)
    values = list(weights.values())
    assert learned > plain() + 0.03
    assert min(values[:2]) > max(values[2:])
