"""What a run that learns labels has made of them, where the task knows what they should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dreamprm.words import Metric

CORRECTIONS = {
    "wrong_labels": Metric("wrong labels", "share of the training labels that were given wrong"),
    "set_right": Metric("set right", "share of the wrong labels that are right at the end"),
    "led_astray": Metric("led astray", "share of the right labels that are wrong at the end"),
}


def corrections(labels: Iterable[tuple[Any, Any]], truth: Iterable[Any]) -> dict[str, float | None]:
    """How many wrong labels were set right, and how many right ones led astray.

    A label in [0, 1] is right on the truth's side of 0.5, a row of class probabilities where the
    true class has the largest. What is given or should be 0.5 itself is on no side: not counted.

    Args:
        labels: of every row as given (a number, a class, or numbers and None) and as corrected (of
            a class, its probabilities).
        truth: of every row, in the form of what was given; None where it is not known. Rows beyond
            its end are not counted.

    Returns:
        the shares of ``CORRECTIONS``, None of no labels.
    """
    wrong, right, set_right, led_astray = 0, 0, 0, 0
    for (given, corrected), true in zip(labels, truth, strict=False):
        for before, after, should in _sides(given, corrected, true):
            if before == should:
                right += 1
                led_astray += after != should
            else:
                wrong += 1
                set_right += after == should
    return {
        "wrong_labels": _share(wrong, wrong + right),
        "set_right": _share(set_right, wrong),
        "led_astray": _share(led_astray, right),
    }


def _sides(given: Any, corrected: Any, true: Any) -> Iterator[tuple[Any, Any, Any]]:
    """What is compared of a row: its labels as given, as corrected and as they should be."""
    if true is None:
        return
    if isinstance(given, list | tuple):
        for triple in zip(given, corrected, true, strict=True):
            if None not in triple:
                yield from _sides(*triple)
    elif isinstance(corrected, list):
        yield given, max(range(len(corrected)), key=corrected.__getitem__), true
    elif given != 0.5 and true != 0.5:
        yield _side(given), _side(corrected), _side(true)


def _side(value: float) -> int:
    """1 above 0.5, −1 below, 0 there."""
    return (value > 0.5) - (value < 0.5)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
