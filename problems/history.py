"""What is kept of a lower problem's steps for the methods that differentiate them."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dreamprm.data.batches import to_device
from dreamprm.hypergradients.interface import LowerStep
from dreamprm.hypergradients.randomness import RandomState, past_randomness
from dreamprm.hypergradients.updates import Rule, State, read_optimizer
from dreamprm.problems.stateless import StatelessLoss

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem


@dataclass(frozen=True)
class RecordedStep:
    """One step as it was before it was taken; the copies are the history's own."""

    rules: list[Rule]
    state: State
    gradient: list[Tensor]
    lower: list[Tensor]
    batches: list[Any]
    random: RandomState


class LowerHistory:
    """The last gradient of a problem, and its steps since an upper problem last used them.

    Args:
        length: the most steps that are kept; None for all of them.

    Attributes:
        random: where the generators stood before the loss under way was evaluated.
    """

    def __init__(self, length: int | None) -> None:
        self.recorded: deque[RecordedStep] = deque(maxlen=length)
        self.used = False
        self.gradient: list[Tensor | None] = []
        self.random: RandomState | None = None

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
        assert self.random is not None
        if self.used:
            self.recorded.clear()
            self.used = False
        rules, state = read_optimizer(problem.optimizer, parameters)
        self.recorded.append(
            RecordedStep(
                _skipping(rules, self.gradient),
                state,
                _filled(self.gradient, parameters),
                [p.detach().clone() for p in parameters],
                problem.batches,
                self.random,
            )
        )

    def steps(self, problem: Problem, above: Problem) -> list[LowerStep]:
        """The recorded steps, their losses as functions of this problem's φ and the α above."""
        self.used = True
        return [
            LowerStep(
                each.rules,
                each.state,
                problem.config.gradient_clipping,
                each.gradient,
                each.lower,
                past_randomness(
                    StatelessLoss(problem, problem, above, each.batches).of, each.random, each.lower
                ),
            )
            for each in self.recorded
        ]

    def state_dict(self) -> dict[str, Any]:
        """What is kept, as plain values and tensors."""
        steps = [
            {
                "rules": [asdict(rule) for rule in each.rules],
                "state": each.state,
                "gradient": each.gradient,
                "lower": each.lower,
                "batches": each.batches,
                "random": (each.random.cpu, each.random.cuda),
            }
            for each in self.recorded
        ]
        return {"steps": steps, "used": self.used, "gradient": self.gradient}

    def load_state_dict(self, state: dict[str, Any], like: list[Any]) -> None:
        """Continues where :meth:`state_dict` was taken, on the device of the parameters."""
        device = like[0].device if like else None
        self.used, self.gradient = state["used"], to_device(state["gradient"], device)
        self.recorded.clear()
        for each in state["steps"]:
            moved = to_device(
                {name: each[name] for name in ("state", "gradient", "lower", "batches")}, device
            )
            rules = [Rule(**rule) for rule in each["rules"]]
            self.recorded.append(
                RecordedStep(rules=rules, random=RandomState(*each["random"]), **moved)
            )


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
