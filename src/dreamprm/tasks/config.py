"""The keys that every run has, whatever its task, and what their values may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from omegaconf import MISSING

from dreamprm.config.checking import check_choices, check_numbers, value_of
from dreamprm.errors import UserError

PLAIN = "uniform"  # the name of a run without an upper level
PRECISIONS = ("fp32", "bf16")


@dataclass
class OptimizerConfig:
    """AdamW and its schedule, for one level."""

    learning_rate: float = MISSING
    weight_decay: float = 0.0
    batch_size: int = MISSING  # of a step
    # Micro-batches that a step is computed in, one after the other. A loss that compares samples
    # with each other does so within a micro-batch.
    accumulate: int = 1
    schedule: str = "constant"  # constant, linear, cosine, step
    warmup_steps: int = 0
    decay_every: int = 5000  # steps, for schedule: step
    gamma: float = 0.5  # factor at each decay, for schedule: step
    clip: float = 0.0  # largest norm of a gradient; 0 for no limit


@dataclass
class EarlyStoppingConfig:
    """When to stop before the last step."""

    patience: int = 0  # validations without getting better; 0 for never
    metric: str = ""  # of the validation
    mode: str = "max"


@dataclass
class FidelityConfig:
    """Comparing the hypergradient with the one by exact products, during training."""

    # Lower-level steps between two comparisons; 0 for none. Each costs one more hypergradient.
    every: int = 0


@dataclass
class BilevelConfig:
    """One run of any task of two levels; of one that weights samples, see :class:`RunConfig`."""

    # What runs: a built-in task (docs/tasks.md), an importable module, or the path of a .py file,
    # which is taken from the folder of the config.
    task: str = "prm"
    # Modules, named in the same ways, that are imported first: what they register is known then.
    plugins: list[str] = field(default_factory=list)
    seed: int = 0
    steps: int = MISSING  # of the lower level
    unroll_steps: int = 5  # steps of the lower level for one of the upper
    # The first so many of the steps are plain ones: every sample counts 1, and the upper level
    # waits.
    cold_start: int = 0
    # How the upper level sees through the lower one: a name that `dreamprm hypergradients` lists,
    # or solver+product. identity takes the product that is right for the precision.
    hypergradient: str = "identity"
    hypergradient_options: dict[str, Any] = field(default_factory=dict)  # e.g. iterations, alpha
    # At most so many samples of the last lower batch are what the hypergradient is taken on; 0
    # for all.
    hypergradient_batch_size: int = 0
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    # Also train without the upper level, on the same batches, to compare with.
    baseline: bool = True
    out: str = MISSING  # the run directory
    precision: str = "fp32"  # or bf16: autocast over fp32 parameters
    device: str = "default"  # a GPU where there is one; cpu; gpu
    log_every: int = 10  # steps
    validate_every: int = 200  # steps
    checkpoint_every: int = 200  # steps
    lower: OptimizerConfig = field(default_factory=OptimizerConfig)
    upper: OptimizerConfig = field(default_factory=OptimizerConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    # May differ between a run and its continuation: where it runs and what it shows.
    FREE: ClassVar[tuple[str, ...]] = (
        *("task", "plugins", "out", "device", "log_every", "checkpoint_every"),
    )

    @property
    def upper_steps(self) -> int:
        """How many steps the upper level takes."""
        return max(0, self.steps // self.unroll_steps - self.cold_start // self.unroll_steps)

    @property
    def learned(self) -> bool:
        """Whether there is an upper level."""
        return True

    @property
    def has_hypergradient(self) -> bool:
        """Whether that has parameters of its own."""
        return self.learned

    @property
    def run_name(self) -> str:
        """What the summary calls the run."""
        return "learned" if self.learned else PLAIN

    def plain(self) -> BilevelConfig:
        """The same run without an upper level, which is named ``PLAIN``."""
        raise NotImplementedError(f"{type(self).__name__} does not say its plain()")

    def check(self, where: str) -> None:
        """Refuses values that are out of range, or do not go together; tasks add their own.

        Args:
            where: they stand, for messages.

        Raises:
            UserError: names the key, what was found and what was expected.
        """
        check_run(self, where)


@dataclass
class RunConfig(BilevelConfig):
    """One run of any task that weights samples; such a task's config is a dataclass on this one."""

    # domain_table, instance_table, domain_and_rows, instance_network: learned; label_table: the
    # labels are, in the place of weights; learning_to_reweight: found anew for every batch. Without
    # an upper level: fixed, given; uniform, every sample counts 1; oracle, focal, worst_group,
    # balanced_information. docs/tasks.md
    weighting: str = "domain_table"
    weighting_options: dict[str, Any] = field(default_factory=dict)  # e.g. column, file
    # What the lower level is trained on: the training data, both (the meta set is a group "meta" of
    # them then), or the meta set.
    train_on: str = "train"

    @property
    def learned(self) -> bool:
        """Whether the weights are learned."""
        from dreamprm.weighting.registry import WEIGHTINGS

        return WEIGHTINGS[self.weighting].learned

    @property
    def has_hypergradient(self) -> bool:
        """Whether the weights are of parameters of their own."""
        from dreamprm.weighting.registry import WEIGHTINGS

        return self.learned and not WEIGHTINGS[self.weighting].looks_ahead

    @property
    def run_name(self) -> str:
        """The weighting."""
        return self.weighting

    def plain(self) -> RunConfig:
        """The same with uniform weights."""
        return replace(self, weighting=PLAIN, weighting_options={})

    def check(self, where: str) -> None:
        """Refuses values that are out of range, or do not go together."""
        from dreamprm.weighting.registry import WEIGHTINGS, check_weighting

        check_choices(self, where, {"train_on": ("train", "both", "meta")})
        try:
            check_weighting(self.weighting, self.weighting_options)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        super().check(where)
        if WEIGHTINGS[self.weighting].looks_ahead:
            check_looking_ahead(self, where)


def check_looking_ahead(config: RunConfig, where: str) -> None:
    """Refuses what weights of the coming step have no use for.

    Raises:
        UserError: names the key.
    """
    from dreamprm.hypergradients import resolve

    method = resolve(config.hypergradient)
    of = f"{where}: weighting={config.weighting} takes one inner product a sample"
    if method.uses_curvature or method.needs:
        raise UserError(f"{of}, found hypergradient={config.hypergradient}: take identity")
    for key in ("hypergradient_batch_size", "fidelity.every"):
        if value_of(config, key):
            raise UserError(f"{of}: {key} is {value_of(config, key)}, expected 0")


def check_run(config: BilevelConfig, where: str) -> None:
    """Refuses values of the keys that every run has.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    # The registries need torch, which help and reading a file do not.
    from dreamprm.hypergradients import resolve

    schedules = ("constant", "linear", "cosine", "step")
    check_choices(
        config,
        where,
        {
            "precision": PRECISIONS,
            "device": ("default", "cpu", "gpu"),
            "lower.schedule": schedules,
            "upper.schedule": schedules,
            "early_stopping.mode": ("min", "max"),
        },
    )
    at_least_one = ("steps", "unroll_steps", "log_every", "validate_every")
    of_a_level = ("batch_size", "accumulate", "decay_every")
    check_numbers(config, where, 1, at_least_one)
    check_numbers(config, where, 1, _both(of_a_level))
    check_numbers(
        config,
        where,
        0,
        (
            *("seed", "cold_start", "checkpoint_every", "fidelity.every"),
            "hypergradient_batch_size",
            *("early_stopping.patience", *_both(("weight_decay", "warmup_steps", "clip"))),
        ),
    )
    try:
        resolve(config.hypergradient).check(config.hypergradient_options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if config.run_name != PLAIN and config.steps <= config.cold_start:
        raise UserError(
            f"{where}: steps is {config.steps} and cold_start {config.cold_start}: "
            f"{config.run_name} would never count"
        )
    if config.learned and not config.upper_steps:
        cold = f", cold_start {config.cold_start}" if config.cold_start else ""
        raise UserError(
            f"{where}: steps is {config.steps}{cold} and unroll_steps {config.unroll_steps}: "
            "the upper level would never take a step"
        )
    for level in ("lower", "upper"):
        size, parts = (value_of(config, f"{level}.{k}") for k in ("batch_size", "accumulate"))
        if size % parts:
            raise UserError(
                f"{where}: {level}.accumulate is {parts}, expected a divisor of "
                f"{level}.batch_size, {size}"
            )
        rate = value_of(config, f"{level}.learning_rate")
        if not rate > 0:
            raise UserError(f"{where}: {level}.learning_rate is {rate}, expected more than 0")
    if config.early_stopping.patience and not config.early_stopping.metric:
        raise UserError(
            f"{where}: early_stopping.patience is {config.early_stopping.patience}, which needs "
            "early_stopping.metric, a number of the validation"
        )
    if not config.out.strip():
        raise UserError(f"{where}: out is empty, expected a folder for the run")


def _both(names: Iterable[str]) -> list[str]:
    return [f"{level}.{name}" for name in names for level in ("lower", "upper")]
