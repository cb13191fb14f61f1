"""Hypergradient methods measured side by side: what ``dreamprm hypergradients`` shows.

Each is held against what it should give, on two small problems at their optimum and on whatever
else is given. Costs are counted, not timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from dreamprm.errors import UserError
from dreamprm.hypergradients import ImplicitMethod, Method, indirect_gradient, resolve
from dreamprm.hypergradients.catalogue import Row
from dreamprm.hypergradients.cost import operations, peak_bytes
from dreamprm.hypergradients.descent import CurvatureWarning
from dreamprm.hypergradients.functional import evaluate
from dreamprm.hypergradients.interface import Loss
from dreamprm.hypergradients.precision import PrecisionWarning
from dreamprm.hypergradients.products import DoubleBackward
from dreamprm.hypergradients.references import (
    VARIABLES,
    Reference,
    cosine,
    relative_error,
    weighted_logistic,
    weighted_ridge,
)
from dreamprm.hypergradients.unrolled import UnrolledMethod
from dreamprm.hypergradients.vectors import Tensors
from dreamprm.progress import progress_bar

OURS = (CurvatureWarning, PrecisionWarning)
SEED = 0


@dataclass(frozen=True)
class Case:
    """A bi-level problem at one point, in one arithmetic.

    Attributes:
        name: as in the table.
        lower_loss, upper_loss: L and M.
        lower, upper: φ and α.
        optimizer: of the lower problem, with its state, over the tensors of ``lower``.
        exact: gives what a method with options is held against, shaped as α.
    """

    name: str
    lower_loss: Loss
    upper_loss: Loss
    lower: Tensors
    upper: Tensors
    optimizer: Optimizer
    exact: Callable[[Method, Mapping[str, Any]], Tensor]


def measure(rows: Sequence[Row], cases: Sequence[Case], progress: str | None = None) -> None:
    """Fills in what is measured of the methods.

    Args:
        rows: of ``dreamprm.hypergradients.catalogue.describe``.
        cases: beside the two small problems; the cost is that at the first of them.
        progress: what the progress bar is called; None shows none.
    """
    costly = cases[0]
    unit = operations(lambda: costly.lower_loss(costly.lower, costly.upper))
    every = [*reference_cases(), *cases]
    with progress_bar(progress, len(rows) * (len(every) + 2), "measurement") as bar:
        for row in rows:
            method = resolve(row.name)
            bar.set_postfix_str(row.name)
            for case in every:
                _measure(row, method, case)
                bar.update()
            row.forwards = _operations(method, costly, row.options) / unit
            bar.update()
            row.copies = _copies(method, row.options)
            bar.update()


def _measure(row: Row, method: Method, case: Case) -> None:
    given = {name: value for name, value in row.options.items() if value is not None}
    if "rank" in given and sum(p.numel() for p in case.lower) <= VARIABLES:
        given["rank"] = min(given["rank"], VARIABLES // 2)
    with warnings.catch_warnings(record=True) as warned:
        for category in OURS:
            warnings.simplefilter("always", category)
        try:
            found = hypergradient_at(method, case, given)
        except (UserError, FloatingPointError) as error:
            row.notes[case.name] = f"failed: {error}"
            return
    said = [str(w.message) for w in warned if issubclass(w.category, OURS)]
    if said:
        row.notes[case.name] = "; ".join(dict.fromkeys(said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        exact = case.exact(method, given)
    row.cosine[case.name] = cosine(found, exact)
    row.error[case.name] = relative_error(found, exact)


def hypergradient_at(method: Method, case: Case, options: Mapping[str, Any]) -> Tensor:
    """The hypergradient of a case by a method, flat; random numbers are drawn from a fixed seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        point, direct, vector = evaluate(
            method,
            case.upper_loss,
            case.lower_loss,
            case.lower,
            case.upper,
            case.optimizer,
            options,
        )
        indirect = indirect_gradient(method, point, vector, options)
    return torch.cat([(d + i).reshape(-1) for d, i in zip(direct, indirect, strict=True)])


def same_in_double_backward(method: Method) -> Method:
    """The method with exact products by double backward, where it is made of products."""
    if isinstance(method, ImplicitMethod | UnrolledMethod):
        return replace(method, product=DoubleBackward)
    return method


def _operations(method: Method, case: Case, options: Mapping[str, Any]) -> int:
    given = {name: value for name, value in options.items() if value is not None}
    arguments = (case.upper_loss, case.lower_loss, case.lower, case.upper, case.optimizer, given)
    point, _, vector = evaluate(method, *arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        indirect_gradient(method, point, vector, given)  # the first one is checked; the next is not
        return operations(lambda: indirect_gradient(method, point, vector, given))


def _copies(method: Method, options: Mapping[str, Any]) -> float:
    """Bytes over those of the parameters, where nothing else takes any: a linear model."""
    pieces = [torch.randn(2**12, generator=torch.Generator().manual_seed(i)) for i in range(64)]
    inputs = [torch.randn(3, 2**12) / 2**9 for _ in pieces]

    def losses(lower: Tensors) -> Tensor:
        outputs = [x @ p for x, p in zip(inputs, lower, strict=True)]
        return torch.stack(outputs).sum(0).square()

    def lower_loss(lower: Tensors, upper: Tensors) -> Tensor:
        return (upper[0].exp() * losses(lower)).sum()

    def upper_loss(lower: Tensors, upper: Tensors) -> Tensor:
        return losses(lower).sum()

    alpha = [torch.zeros(3)]
    optimizer = AdamW(pieces, lr=1e-3)
    take_real_steps(optimizer, lambda: lower_loss(pieces, alpha), 1)
    given = {name: value for name, value in options.items() if value is not None}
    point, _, vector = evaluate(method, upper_loss, lower_loss, pieces, alpha, optimizer, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        indirect_gradient(method, point, vector, given)
        peak = peak_bytes(lambda: indirect_gradient(method, point, vector, given))
    recorded = [
        tensor
        for step in point.steps
        for tensor in (
            *(step.gradient or ()),
            *(step.lower or ()),
            *(s for one in step.state for s in one.values()),
        )
    ]
    kept = [t for value in point.memory.values() if isinstance(value, list) for t in value]
    held = sum(t.nbytes for t in {id(t): t for t in (*vector, *recorded, *kept)}.values())
    return (peak + held) / sum(p.nbytes for p in pieces)


def take_real_steps(optimizer: Optimizer, loss: Callable[[], Tensor], steps: int) -> None:
    """Takes steps with torch's own optimizer; its tensors may be plain ones."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    for p in tensors:
        p.requires_grad_()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    for p in tensors:
        p.grad = None
        p.requires_grad_(False)


def reference_cases() -> list[Case]:
    """Domain-weighted ridge and logistic regression at the lower optimum, in float64.

    Adam's state is that of 200 steps on the way there.
    """
    return [_reference_case(weighted_ridge()), _reference_case(weighted_logistic())]


def _reference_case(reference: Reference) -> Case:
    lower = [torch.zeros_like(p) for p in reference.parameters()]
    optimizer = Adam(lower, lr=0.05)
    take_real_steps(optimizer, lambda: reference.lower(lower, [reference.alpha]), 200)
    for p, solution in zip(lower, reference.parameters(), strict=True):
        p.copy_(solution)
    return Case(
        reference.name,
        reference.lower,
        reference.upper,
        lower,
        [reference.alpha],
        optimizer,
        lambda method, options: reference.exact(),
    )
