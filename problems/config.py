"""The config of a Problem: what betty's says, with the hypergradient in this project's words."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from betty.configs import Config

from dreamprm.errors import UserError
from dreamprm.hypergradients import resolve
from dreamprm.hypergradients.interface import STEPS

UNUSED = (
    *("darts_alpha", "darts_multitask", "sama_adam_alpha", "sama_multitask"),
    *("neumann_iterations", "neumann_alpha", "cg_iterations", "cg_alpha"),
    *("initial_dynamic_scale", "scale_factor", "log_local_step"),
)


@dataclass
class ProblemConfig(Config):
    """What betty's Config says, with the hypergradient method in this project's words.

    Attributes:
        type: on a lower problem, the method by which its uppers see through it; any name of
            ``dreamprm.hypergradients``.
        options: of that method, e.g. ``{"iterations": 10}``.
        precision: ``"fp32"``, or ``"bf16"`` for bf16 autocast over the parameters as they are.
        unroll_steps: steps of this problem between two steps of its upper problem.
        warmup_steps: steps of this problem before its upper problem may step.
        gradient_accumulation: micro-batches of a step; all that counts steps counts them as one.
        hypergradient_batch_size: on a lower problem, items of its last step's batch on which its
            hypergradient is taken; 0 for all of them. Needs a loader with ``recent``, as
            ``dreamprm.data.batches.BatchStream`` has.
        fidelity_every: on a lower problem, steps between two comparisons of its hypergradient with
            the exact product; 0 for none. See problems/fidelity.py.
    """

    type: str = "identity"
    options: dict[str, Any] = field(default_factory=dict)
    fidelity_every: int = 0
    hypergradient_batch_size: int = 0
    log_step: int = 1

    def __post_init__(self) -> None:
        method = resolve(self.type)
        method.check(self.options)
        for each in fields(Config):
            if each.name in UNUSED and getattr(self, each.name) != each.default:
                raise UserError(
                    f"{each.name} is betty's own and not used here: "
                    "options= takes those of the hypergradient method"
                )
        for name in ("fidelity_every", "hypergradient_batch_size"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision is {self.precision!r}, expected 'fp32' or 'bf16'")
        if not self.first_order:
            raise UserError(
                "first_order=False would keep a graph that nothing uses: "
                "for unrolled differentiation set type='unrolled'"
            )
        if self.gradient_clipping < 0:
            raise UserError(
                f"gradient_clipping is {self.gradient_clipping}, expected at least 0 (for none)"
            )
        for name in ("unroll_steps", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if STEPS in method.needs:
            if (self.options.get("iterations") or 0) > self.unroll_steps:
                raise UserError(
                    f"iterations is {self.options['iterations']}, expected at most the "
                    f"{self.unroll_steps} lower steps between two upper ones (unroll_steps)"
                )
            if self.hypergradient_batch_size:
                raise UserError(
                    f"{self.type} differentiates the steps that were taken, all of their batches: "
                    "hypergradient_batch_size is not for it"
                )
