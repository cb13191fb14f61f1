"""What a task calls its things, for the report and the table of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dreamprm.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    Attributes:
        title: what it is called.
        meaning: what it says, as half a sentence.
    """

    title: str
    meaning: str = ""


@dataclass(frozen=True)
class Words:
    """The words of a task; the defaults fit any.

    Attributes:
        group: what has one weight for all of its samples.
        sample: what the lower level learns from.
        meta: what the upper level learns from.
        metrics: the numbers of ``summary.json`` and, by the same names, of validations.
        tiles: metrics that matter most, the main one first; empty for the first two of the run.
        against: for a tile, the metrics to hold it against.
        test: what all numbers of ``summary.json`` are measured on; empty where that is no test, or
            no single one.
        plain: what a run without an upper level has.
    """

    group: str = "group"
    sample: str = "sample"
    meta: str = "meta set"
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    tiles: Sequence[str] = ()
    against: Mapping[str, Sequence[str]] = field(default_factory=dict)
    test: str = ""
    plain: str = "uniform weights"

    def title(self, name: str) -> str:
        """What a metric is called; its name where the words do not say."""
        return self.metrics[name].title if name in self.metrics else name.replace("_", " ")

    def shown(self, runs: Iterable[Mapping[str, Any]]) -> list[str]:
        """The metrics that some run has a number of: those with words first, in their order."""
        found = dict.fromkeys(k for run in runs for k, value in run.items() if is_number(value))
        return [k for k in self.metrics if k in found] + [k for k in found if k not in self.metrics]


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def plural(word: str) -> str:
    """Of a word that takes an s."""
    return f"{word}s"


def capital(text: str) -> str:
    """With its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def union(words: Sequence[Words]) -> Words:
    """The words of several runs: all metrics, and of each other word the neutral one where the
    runs differ."""
    neutral = Words()
    metrics: dict[str, Metric] = {}
    for one in words:
        metrics |= {name: one.metrics[name] for name in one.metrics if name not in metrics}

    def common(name: str) -> str:
        found = {getattr(one, name) for one in words}
        return found.pop() if len(found) == 1 else getattr(neutral, name)

    return Words(
        group=common("group"),
        sample=common("sample"),
        meta=common("meta"),
        metrics=metrics,
        test=common("test"),
        plain=common("plain"),
    )


def as_json(words: Words) -> dict[str, Any]:
    """The words as ``words_from_json`` reads them."""
    return asdict(words) | {
        "metrics": {name: asdict(metric) for name, metric in words.metrics.items()},
        "tiles": list(words.tiles),
        "against": {name: list(others) for name, others in words.against.items()},
    }


def words_from_json(found: Any, where: str) -> Words:
    """Reads what ``as_json`` gave; what is missing is neutral.

    Args:
        found: the object.
        where: the file, for messages.

    Raises:
        UserError: a value is of another type.
    """
    values = _of(found, dict, "words", where)
    neutral = Words()
    return Words(
        **{
            key: _of(values.get(key, getattr(neutral, key)), str, key, where)
            for key in ("group", "sample", "meta", "test", "plain")
        },
        metrics={
            name: _metric(name, value, where)
            for name, value in _of(values.get("metrics", {}), dict, "metrics", where).items()
        },
        tiles=_names(values.get("tiles", []), "tiles", where),
        against={
            name: _names(value, f"against {name!r}", where)
            for name, value in _of(values.get("against", {}), dict, "against", where).items()
        },
    )


def _metric(name: str, found: Any, where: str) -> Metric:
    values = _of(found, dict, f"metric {name!r}", where)
    title = _of(values.get("title", name.replace("_", " ")), str, f"title of {name!r}", where)
    return Metric(title, _of(values.get("meaning", ""), str, f"meaning of {name!r}", where))


def _names(found: Any, what: str, where: str) -> tuple[str, ...]:
    return tuple(_of(name, str, what, where) for name in _of(found, list, what, where))


def _of(value: Any, kind: type, what: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{where}: {what} is {value!r}, expected {kind.__name__}")
    return value
