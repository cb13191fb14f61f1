"""What is kept of a lower problem's steps for the methods that differentiate them."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamprm.data.batches import to_device
from dreamprm.hypergradients.interface import STEPS, Loss, LowerStep
from dreamprm.hypergradients.randomness import RandomState, past_randomness
from dreamprm.hypergradients.updates import Rule, State, read_optimizer
from dreamprm.problems.levels import held_by_warm_up, uppers_through
from dreamprm.problems.stateless import StatelessLoss, others, state_of

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem

Seen = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class RecordedStep:
    """One step as it was before it was taken; the copies are the history's own.

    Attributes:
        number: of all that were recorded.
        count: of the problem, at this step.
        rules, state, gradient, lower: see LowerStep.
        batches, random: of its loss.
        seen: parameters and buffers that its loss found in each problem, by the problem's name;
            of the problem itself, buffers alone.
        counts: the steps that the other problems had taken.
    """

    number: int
    count: int
    rules: list[Rule]
    state: State
    gradient: list[Tensor]
    lower: list[Tensor]
    batches: list[Any]
    random: RandomState
    seen: Seen
    counts: dict[str, int]


class LowerHistory:
    """The last gradient of a problem, and its steps since each upper problem last used them.

    An upper problem that waits for the end of a warm-up has used all steps until then: the run's
    derivative begins with the first inner loop that the warm-up does not hold back.

    Args:
        length: the most steps that are kept; None for all of them.

    Attributes:
        recorded: the steps that an upper problem will still use, oldest first.
        windows: for each problem above, the numbers of the last steps before and in what it last
            used.
        adjoints: what the upper loss changes by this problem's parameters as they were after a
            step, by its count; from the problem above which they were seen, for the next use.
    """

    def __init__(self, length: int | None) -> None:
        self.recorded: deque[RecordedStep] = deque(maxlen=length)
        self.number = 0
        self.windows: dict[str, tuple[int, int]] = {}
        self.adjoints: dict[int, list[Tensor]] = {}
        self.gradient: list[Tensor | None] = []
        self._moments: list[int] = []
        self._random: RandomState | None = None
        self._seen: Seen = {}

    def before_loss(self, problem: Problem) -> None:
        """Notes what the loss under way will find: generators, parameters and buffers."""
        self._random = RandomState.now(problem.trainable_parameters())
        self._seen = {
            each.name: state_of(each, self._seen.get(each.name, {}), each is not problem)
            for each in [problem, *others(problem)]
        }

    def record(self, problem: Problem, whole: bool) -> None:
        """Notes the step that the optimizer is about to take.

        Args:
            problem: whose parameters hold the gradient, not clipped yet.
            whole: the step with all that led to it; else the gradient alone.
        """
        parameters = problem.trainable_parameters()
        self.gradient = [
            p.grad.detach().clone() if p.grad is not None else None for p in parameters
        ]
        if not whole:
            return
        self.number += 1
        uses = uppers_through(problem)
        for above, upper in uses:
            if held_by_warm_up(upper, problem):
                self.windows[above.name] = (self.number, self.number)
        used = min((self._used(above.name)[1] for above, _ in uses), default=self.number)
        while self.recorded and self.recorded[0].number <= used:
            self.recorded.popleft()
        if used == self.number:
            return
        assert self._random is not None
        rules, state = read_optimizer(problem.optimizer, parameters)
        self.recorded.append(
            RecordedStep(
                self.number,
                problem.count,
                _skipping(rules, self.gradient),
                state,
                _filled(self.gradient, parameters),
                [p.detach().clone() for p in parameters],
                problem.batches,
                self._random,
                self._seen,
                {each.name: each.count for each in others(problem)},
            )
        )

    def _used(self, name: str) -> tuple[int, int]:
        return self.windows.get(name, (0, 0))

    def steps(self, problem: Problem, above: Problem) -> tuple[list[Tensor], list[LowerStep]]:
        """The steps since ``above`` last used them, their losses as functions of φ and α.

        Where the problem above moved between the steps, α is a list of all its parameters at one
        moment after the other, and each loss is a function of its own.

        Returns:
            α, and the steps.
        """
        start, end = self._used(above.name)
        if end < self.number:  # else the same upper step looks once more, along another path
            start, end = end, self.number
        self.windows[above.name] = (start, end)
        used = [each for each in self.recorded if each.number > start]
        alpha = {each.counts[above.name]: _trained(each, above) for each in used}
        self._moments = list(alpha)
        steps = []
        for each in used:
            place = self._moments.index(each.counts[above.name]) * len(above.trainable_parameters())
            loss = past_randomness(_replayed(problem, above, each, place), each.random, each.lower)
            steps.append(
                LowerStep(
                    each.rules,
                    each.state,
                    problem.config.gradient_clipping,
                    each.gradient,
                    each.lower,
                    loss,
                    self.adjoints.get(each.count - 1),
                )
            )
        self.adjoints = {}
        return [a for moment in alpha.values() for a in moment], steps

    def settle(self, above: Problem, found: list[Tensor]) -> list[Tensor]:
        """Gives each earlier moment's part of a result to the steps above that led there.

        Args:
            above: as of :meth:`steps`.
            found: shaped as the α that it gave.

        Returns:
            the part of the present, or all in one where the steps above are not differentiated;
            shaped as the parameters above.
        """
        size = len(above.trainable_parameters())
        total = [torch.zeros_like(p) for p in above.trainable_parameters()]
        by_moment = STEPS in above._method.needs and not above._paths
        for index, count in enumerate(self._moments):
            part = found[index * size : (index + 1) * size]
            if by_moment and count != above.count:
                held = above._history.adjoints
                held[count] = _sum(held[count], part) if count in held else part
            else:
                total = _sum(total, part)
        return total

    def state_dict(self) -> dict[str, Any]:
        """What is kept, as plain values and tensors."""
        steps = [
            {name: getattr(each, name) for name in RecordedStep.__dataclass_fields__}
            | {
                "rules": [asdict(rule) for rule in each.rules],
                "random": (each.random.cpu, each.random.cuda),
            }
            for each in self.recorded
        ]
        return {
            "steps": steps,
            "number": self.number,
            "windows": dict(self.windows),
            "gradient": self.gradient,
        }

    def load_state_dict(self, state: dict[str, Any], like: list[Any]) -> None:
        """Continues where :meth:`state_dict` was taken, on the device of the parameters."""
        device = like[0].device if like else None
        self.gradient = to_device(state["gradient"], device)
        self.number, self.windows = state["number"], dict(state["windows"])
        self.recorded.clear()
        for each in state["steps"]:
            moved = {
                n: to_device(v, device) for n, v in each.items() if n not in ("rules", "random")
            }
            rules, random = [Rule(**rule) for rule in each["rules"]], RandomState(*each["random"])
            self.recorded.append(RecordedStep(rules=rules, random=random, **moved))


def next_step(problem: Problem, history: LowerHistory) -> LowerStep:
    """The step that the optimizer would take now, at the gradient of its last one."""
    parameters = problem.trainable_parameters()
    rules, state = read_optimizer(problem.optimizer, parameters)
    return LowerStep(
        _skipping(rules, history.gradient),
        state,
        problem.config.gradient_clipping,
        _filled(history.gradient, parameters),
    )


def _trained(step: RecordedStep, above: Problem) -> list[Tensor]:
    """The trainable parameters above, as a step found them."""
    named = above.module.named_parameters()
    return [step.seen[above.name][name] for name, p in named if p.requires_grad]


def _replayed(problem: Problem, above: Problem, step: RecordedStep, place: int) -> Loss:
    """A step's loss as it was, of φ and of the α that begins at ``place`` among the moments'."""
    stateless = StatelessLoss(problem, problem, above, step.batches, seen=step.seen)
    size = len(above.trainable_parameters())
    counts = {each: step.counts[each.name] for each in others(problem)} | {problem: step.count}

    def loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        now = {each: each.count for each in counts}
        try:
            _set_counts(counts)  # which a loss may depend on
            return stateless.of(lower, upper[place : place + size])
        finally:
            _set_counts(now)

    return loss


def _set_counts(counts: dict[Problem, int]) -> None:
    for problem, count in counts.items():
        problem._count = count


def _sum(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _skipping(rules: list[Rule], gradient: list[Tensor | None]) -> list[Rule]:
    """torch's optimizers leave parameters without a gradient as they are."""
    return [
        replace(rule, kind="skip") if g is None else rule
        for rule, g in zip(rules, gradient, strict=True)
    ]


def _filled(gradient: list[Tensor | None], parameters: list[Any]) -> list[Tensor]:
    return [
        p.detach().new_zeros(p.shape) if g is None else g
        for p, g in zip(parameters, gradient, strict=True)
    ]
