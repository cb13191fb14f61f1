"""What ``evaluate`` finds: its JSON file as dataclasses, an attribute for every key.

docs/evaluation.md says what each holds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dreamprm.evaluation.significance import Comparison

SCHEMA = "dreamprm-evaluation-1"
LEFT_OUT = ("source", "picks", "right")  # where they are None


@dataclass(frozen=True)
class Judging:
    """The settings of ``evaluate`` that its numbers depend on, and the intervals' confidence."""

    aggregations: list[str]
    bootstrap: int
    confidence: float
    seed: int
    threshold: float
    threshold_domain: str | None
    bins: int


@dataclass(frozen=True)
class Estimate:
    """A number, None where the data do not allow it, and its bootstrap interval if it has one."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """How often a way of picking is right, for every N; ``source`` is the best one's name."""

    accuracy: list[float]
    low: list[float | None]
    high: list[float | None]
    source: str | None = None

    @property
    def estimates(self) -> list[Estimate]:
        """The accuracies with their intervals."""
        return list(map(Estimate, self.accuracy, self.low, self.high))


@dataclass(frozen=True)
class ModelSelection:
    """One model's selection: as in a run's ``summary.json``, and by rule."""

    summary: dict[str, float | None]
    rules: dict[str, Curve]


@dataclass(frozen=True)
class ModelPicks:
    """One model's picks for a question, by rule, and its candidates' scores, by aggregation."""

    picks: dict[str, int]
    aggregated: dict[str, list[float]]


@dataclass(frozen=True)
class QuestionPicks:
    """What is picked for a question: the index of a candidate, −1 for none."""

    id: str
    right: list[bool]
    sources: list[str]
    baselines: dict[str, int]
    models: dict[str, ModelPicks]


@dataclass(frozen=True)
class Selection:
    """Best of N on one file of questions, or, without path and picks, on several together."""

    name: str
    path: str | None
    questions: int
    candidates: list[int]
    n: list[int]
    exact_votes: list[bool]
    baselines: dict[str, Curve]
    models: dict[str, ModelSelection]
    comparisons: list[Comparison]
    picks: list[QuestionPicks] | None = None


@dataclass(frozen=True)
class Threshold:
    """The threshold with the highest ProcessBench F1."""

    threshold: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """The steps whose scores are in [low, high): how many, their mean score and mean label."""

    low: float
    high: float
    count: int
    score: float | None
    label: float | None


@dataclass(frozen=True)
class StepNumbers:
    """Metrics of one model's step scores, as docs/evaluation.md defines them."""

    solutions: int
    steps: int
    share_right: float
    auc: Estimate
    processbench_error_accuracy: Estimate
    processbench_correct_accuracy: Estimate
    processbench_f1: Estimate
    f1_right: Estimate
    f1_wrong: Estimate
    macro_f1: Estimate
    ece: Estimate
    brier: Estimate
    processbench_best: Threshold | None
    reliability: list[Bin]


@dataclass(frozen=True)
class ModelSteps:
    """One model's step scores on a set of solutions; right above the threshold."""

    threshold: float
    total: StepNumbers
    domains: dict[str, StepNumbers]
    mean: dict[str, float | None]


@dataclass(frozen=True)
class Steps:
    """Step metrics on one file of solutions, or, without path, on several together."""

    name: str
    path: str | None
    models: dict[str, ModelSteps]


@dataclass(frozen=True)
class ExampleStep:
    """A step of an example, with its score and its label if it has one."""

    text: str
    score: float
    label: float | None


@dataclass(frozen=True)
class Example:
    """A solution to look at; a mistake has the best-scored right one of its question."""

    id: str
    domain: str
    question: str
    images: list[str]
    steps: list[ExampleStep]
    aggregated: float
    answer: str | None
    correct: bool | None
    right: Example | None = None


@dataclass(frozen=True)
class Examples:
    """A model's highest- and lowest-scored solutions of a data set, and its mistaken picks."""

    data: str
    model: str
    best: list[Example]
    worst: list[Example]
    mistakes: list[Example]


@dataclass(frozen=True)
class Evaluation:
    """All that ``evaluate`` finds."""

    settings: Judging
    models: list[str]
    selection: list[Selection]
    steps: list[Steps]
    examples: list[Examples]

    def as_json(self) -> dict[str, Any]:
        """The object that docs/evaluation.md describes."""

        def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: value for key, value in pairs if value is not None or key not in LEFT_OUT}

        return {"schema": SCHEMA} | asdict(self, dict_factory=members)
