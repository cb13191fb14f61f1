"""How close a live problem's hypergradient is to the one with exact products, now and then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamprm.hypergradients import Point, indirect_gradient, resolve
from dreamprm.hypergradients.implicit import ImplicitMethod
from dreamprm.hypergradients.products import DoubleBackward, ForwardMode, NoForwardMode
from dreamprm.hypergradients.references import cosine, relative_error
from dreamprm.hypergradients.solvers import identity
from dreamprm.problems.stateless import StatelessLoss
from dreamprm.weighting.row_parameters import holding

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem


def is_due(every: int, count: int, unroll_steps: int) -> bool:
    """Whether an upper step after ``count`` lower ones is the first since a multiple of ``every``.

    Args:
        every: lower steps; 0 for never.
        count: lower steps taken.
        unroll_steps: lower steps between two upper ones.
    """
    return every > 0 and count // every > (count - unroll_steps) // every


def fidelity(
    problem: Problem,
    above: Problem,
    batches: list[Any],
    point: Point,
    vector: list[Tensor],
    found: list[Tensor],
    rows: Tensor | None = None,
) -> dict[str, float]:
    """The used method against exact products without autocast: forward mode where the loss has it.

    Of a method that is a solver and a product, the reference keeps the solver, and also the
    relative error is given; of any other one it is identity + forward, whose length is another.

    Args:
        problem, above: the lower problem and the one that is above it.
        batches: of the lower loss there.
        point: where ``found`` was taken, with a memory that nobody else reads, as it was then.
        vector: v.
        found: the indirect term as the method gave it.
        rows: of which alone α was given.

    Returns:
        ``hypergradient_cosine`` and maybe ``hypergradient_error``.
    """
    method, options = resolve(problem.config.type), problem.config.options
    same_solver = isinstance(method, ImplicitMethod)
    if isinstance(method, ImplicitMethod):
        solver = replace(method, product=ForwardMode)
        of_solver = solver.options
        options = {name: value for name, value in options.items() if name in of_solver}
    else:
        solver, options = ImplicitMethod("identity", identity, ForwardMode), {}
    exact_loss = StatelessLoss(problem, problem, above, batches, autocast=False).of
    upper: list[Tensor] = list(above.trainable_parameters()) if rows is None else point.upper
    point = replace(point, lower_loss=holding(above.module, rows, exact_loss), upper=upper)
    try:
        exact = indirect_gradient(solver, point, vector, options)
    except NoForwardMode:
        exact = indirect_gradient(replace(solver, product=DoubleBackward), point, vector, options)
    flat_found, flat_exact = (torch.cat([g.reshape(-1) for g in gs]) for gs in (found, exact))
    values = {"hypergradient_cosine": cosine(flat_found, flat_exact)}
    if same_solver:
        values["hypergradient_error"] = relative_error(flat_found, flat_exact)
    return values
