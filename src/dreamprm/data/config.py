"""The keys of a reward model's data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SyntheticConfig:
    """The built-in domains (dreamprm.data.synthetic), drawn into the run directory."""

    # Quality of each domain, by its name; none means that data come from files.
    domains: dict[str, str] = field(default_factory=dict)
    solutions: int = 1500  # per domain
    meta: int = 400  # solutions of the meta set
    questions: int = 150  # of the test set
    candidates: int = 8  # per test question


@dataclass
class DataConfig:
    """What is trained on."""

    # The folder that relative paths of train, meta and test are taken from; itself relative to the
    # working directory.
    root: str = "."
    # Of the files of `train`: canonical, gsm8k-solutions, or any other that docs/data.md lists;
    # auto: told by each file's first rows.
    format: str = "canonical"
    # Files, patterns of file names such as parts/*.jsonl, and hub:NAME or hub:NAME:SPLIT.
    train: list[str] = field(default_factory=list)
    # Solutions with an outcome each. Without files: the share `meta_share` of the questions of
    # `train`, held out.
    meta: list[str] = field(default_factory=list)
    meta_format: str = "canonical"
    meta_share: float = 0.0
    # Questions with candidates to choose from, canonical. Without files: the share `test_share`
    # of the questions of `train`, held out, each with all its solutions as candidates.
    test: list[str] = field(default_factory=list)
    test_share: float = 0.0
    # steps: as they are in the data; outcome: a step without a label takes its solution's outcome.
    labels: str = "steps"
    # A control: this domain once more as "NAME-shuffled", with the outcomes shuffled.
    shuffled_copy: str | None = None
    # require: a missing image is an error; skip_missing: it is left out; ignore: text only.
    images: str = "require"
    # Longer solutions are left out, and counted.
    max_tokens: int = 2048
    # How often a domain of n solutions is drawn: balanced, as often as any other, in every batch;
    # proportional, n; temperature, n^(1 / data.temperature).
    sampling: str = "balanced"
    temperature: float | None = None
    # Where training solutions are: never on disk alone, always, or auto: where their files have
    # more than 128 MiB, or come from the hub. docs/data.md
    streaming: str = "auto"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
