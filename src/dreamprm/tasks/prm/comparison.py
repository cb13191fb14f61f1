"""Every hypergradient method measured side by side: what ``dreamprm hypergradients`` shows.

Held against the exact implicit hypergradient on two small problems at their optimum, and on the
demo's reward model against the same method in float64 with the cross product written out by the
gradients of the domains. Costs are counted, not timed.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from dreamprm.data.sources import load_data
from dreamprm.errors import UserError
from dreamprm.hypergradients import ImplicitMethod, Method, indirect_gradient, resolve
from dreamprm.hypergradients.catalogue import Row
from dreamprm.hypergradients.cost import operations, peak_bytes
from dreamprm.hypergradients.functional import evaluate
from dreamprm.hypergradients.interface import Loss
from dreamprm.hypergradients.precision import PrecisionWarning
from dreamprm.hypergradients.products import DoubleBackward
from dreamprm.hypergradients.randomness import RandomState
from dreamprm.hypergradients.references import (
    VARIABLES,
    Reference,
    cosine,
    relative_error,
    weighted_logistic,
    weighted_ridge,
)
from dreamprm.hypergradients.solvers import CurvatureWarning, Tensors
from dreamprm.hypergradients.unrolled import UnrolledMethod
from dreamprm.problems.stateless import StatelessLoss
from dreamprm.progress import progress_bar
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.task import PRMEngine, build_engine

DROPOUT = 0.1
OURS = (CurvatureWarning, PrecisionWarning)
SEED = 0


@dataclass(frozen=True)
class Task:
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


def measure(rows: Sequence[Row], progress: str | None = None) -> None:
    """Fills in what is measured of the methods.

    The demo's model is trained for a minute first, whatever the methods.

    Args:
        rows: of ``dreamprm.hypergradients.catalogue.describe``.
        progress: what the progress bars are called; None shows none.
    """
    with demo_tasks(progress) as (prm_tasks, batch_forward, _):
        tasks = [*reference_tasks(), *prm_tasks]
        with progress_bar(progress, len(rows) * (len(tasks) + 2), "measurement") as bar:
            for row in rows:
                method = resolve(row.name)
                bar.set_postfix_str(row.name)
                for task in tasks:
                    _measure(row, method, task)
                    bar.update()
                row.forwards = _operations(method, prm_tasks[0], row.options) / batch_forward
                bar.update()
                row.copies = _copies(method, row.options)
                bar.update()


def _measure(row: Row, method: Method, task: Task) -> None:
    given = {name: value for name, value in row.options.items() if value is not None}
    if "rank" in given and sum(p.numel() for p in task.lower) <= VARIABLES:
        given["rank"] = min(given["rank"], VARIABLES // 2)
    with warnings.catch_warnings(record=True) as warned:
        for category in OURS:
            warnings.simplefilter("always", category)
        try:
            found = hypergradient_at(method, task, given)
        except (UserError, FloatingPointError) as error:
            row.notes[task.name] = f"failed: {error}"
            return
    said = [str(w.message) for w in warned if issubclass(w.category, OURS)]
    if said:
        row.notes[task.name] = "; ".join(dict.fromkeys(said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        exact = task.exact(method, given)
    row.cosine[task.name] = cosine(found, exact)
    row.error[task.name] = relative_error(found, exact)


def hypergradient_at(method: Method, task: Task, options: Mapping[str, Any]) -> Tensor:
    """The hypergradient of a task by a method, flat; random numbers are drawn from a fixed seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        point, direct, vector = evaluate(
            method,
            task.upper_loss,
            task.lower_loss,
            task.lower,
            task.upper,
            task.optimizer,
            options,
        )
        indirect = indirect_gradient(method, point, vector, options)
    return torch.cat([(d + i).reshape(-1) for d, i in zip(direct, indirect, strict=True)])


def _operations(method: Method, task: Task, options: Mapping[str, Any]) -> int:
    given = {name: value for name, value in options.items() if value is not None}
    arguments = (task.upper_loss, task.lower_loss, task.lower, task.upper, task.optimizer, given)
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
    held = sum(t.nbytes for t in {id(t): t for t in (*vector, *recorded)}.values())
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


def reference_tasks() -> list[Task]:
    """Domain-weighted ridge and logistic regression at the lower optimum, in float64.

    Adam's state is that of 200 steps on the way there.
    """
    return [_reference_task(weighted_ridge()), _reference_task(weighted_logistic())]


def _reference_task(reference: Reference) -> Task:
    lower = [torch.zeros_like(p) for p in reference.parameters()]
    optimizer = Adam(lower, lr=0.05)
    take_real_steps(optimizer, lambda: reference.lower(lower, [reference.alpha]), 200)
    for p, solution in zip(lower, reference.parameters(), strict=True):
        p.copy_(solution)
    return Task(
        reference.name,
        reference.lower,
        reference.upper,
        lower,
        [reference.alpha],
        optimizer,
        lambda method, options: reference.exact(),
    )


class PerDomainGradients(DoubleBackward):
    """The cross product of a table of domain weights, written out: (∂w/∂α)ᵀ (∇L_k · q)_k.

    Args:
        domain_losses: φ -> (L_1 … L_K), [K].
        weights: α -> w, [K].
        loss, lower, upper: as for every product, with L = Σ_k w_k L_k.
    """

    def __init__(
        self,
        domain_losses: Callable[[Tensors], Tensor],
        weights: Callable[[Tensors], Tensor],
        loss: Loss,
        lower: Tensors,
        upper: Tensors,
    ) -> None:
        super().__init__(loss, lower, upper)
        self.domain_losses, self.weights = domain_losses, weights

    def cross(self, q: Tensors) -> Tensors:
        """(∂²L/∂α∂φ)ᵀ q, shaped as α."""
        along = []
        for each in self.domain_losses(self.lower):
            gradients = torch.autograd.grad(
                each, self.lower, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            products = [(g * v).sum() for g, v in zip(gradients, q, strict=True)]
            along.append(torch.stack(products).sum())
        return list(torch.autograd.grad(self.weights(self.upper), self.upper, torch.stack(along)))


@contextmanager
def demo_tasks(
    progress: str | None = None, steps: int = 60
) -> Iterator[tuple[list[Task], int, PRMEngine]]:
    """The demo's reward model after a few steps: in fp32, under bf16 autocast, with dropout.

    Yields:
        the tasks, the operations of one evaluation of the lower loss, and the engine.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            "demo",
            [
                *(f"out={folder}", f"steps={steps}", f"validate_every={steps}", "device=cpu"),
                *("data.synthetic.solutions=100", "data.synthetic.meta=64"),
                *("data.synthetic.questions=1", "lower.batch_size=16", "upper.batch_size=32"),
                "lower.schedule=constant",  # a learning rate of 0 at the end would end sama too
            ],
        )
        engine = build_engine(config, load_data(config.data, Path(folder), SEED), Path(folder))
        engine.config.progress = progress and f"{progress}: the demo's model"
        engine.run()
        tasks = [
            prm_task(engine, "prm, fp32"),
            prm_task(engine, "prm, bf16", autocast=True),
            prm_task(engine, "prm, dropout", dropout=DROPOUT),
        ]
        first = tasks[0]
        yield tasks, operations(lambda: first.lower_loss(first.lower, first.upper)), engine


def prm_task(
    engine: PRMEngine,
    name: str,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    dropout: float = 0.0,
) -> Task:
    """The reward model of an engine, on the batches of its last steps, in an arithmetic.

    Args:
        engine: that has run.
        name: of the task.
        dtype: of the parameters.
        autocast: whether the losses run under bf16 autocast.
        dropout: of the attention.
    """
    below, above = engine.lower, engine.upper
    assert above is not None

    drawn: dict[str, RandomState] = {}

    def loss(problem: Any) -> Loss:
        stateless = StatelessLoss(problem, below, above, problem.batches, autocast=False).of

        def value(lower: Tensors, upper: Tensors) -> Tensor:
            drawn["by M" if problem is above else "by L"] = RandomState.now(lower)
            with (
                attention_dropout(below.module, dropout),
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            ):
                return stateless(lower, upper)

        return value

    def parameters(dtype: torch.dtype) -> tuple[Tensors, Tensors, Optimizer]:
        lower = [p.detach().to(dtype, copy=True) for p in below.trainable_parameters()]
        at_least_fp32 = torch.promote_types(dtype, torch.float32)
        upper = [p.detach().to(at_least_fp32, copy=True) for p in above.trainable_parameters()]
        optimizer = AdamW(lower)
        optimizer.load_state_dict(below.optimizer.state_dict())
        return lower, upper, optimizer

    sample_losses = _SampleLosses(below)
    batch = below.cur_batch
    domains = len(above.module.domains)

    def domain_losses(lower: Tensors) -> Tensor:
        tensors = dict(zip(sample_losses.names, lower, strict=True))
        # With the masks of the last evaluation of L.
        drawn["by L"].restore()
        with attention_dropout(below.module, dropout):
            losses = torch.func.functional_call(sample_losses, tensors, ())
        return losses.new_zeros(domains).index_add(0, batch["domain"], losses) / len(losses)

    def weights(upper: Tensors) -> Tensor:
        positive = nn.functional.softplus(upper[0])
        return positive / positive.mean()

    def exact(method: Method, options: Mapping[str, Any]) -> Tensor:
        if dtype != torch.float64:
            return prm_task(engine, name, torch.float64, dropout=dropout).exact(method, options)
        if isinstance(method, ImplicitMethod | UnrolledMethod):
            method = replace(method, product=partial(PerDomainGradients, domain_losses, weights))
            options = {name: v for name, v in options.items() if name in method.options}
        return hypergradient_at(method, task, options)

    task = Task(name, loss(below), loss(above), *parameters(dtype), exact)
    return task


class _SampleLosses(nn.Module):
    """The lower problem's loss of every sample as a function of its parameters."""

    def __init__(self, problem: Any) -> None:
        super().__init__()
        self.module = problem.module
        self._problem = [problem]
        self.names = [name for name, p in self.named_parameters() if p.requires_grad]

    def forward(self) -> Tensor:
        return self._problem[0].sample_losses(self._problem[0].cur_batch)


@contextmanager
def attention_dropout(model: nn.Module, rate: float) -> Iterator[None]:
    """The model in training mode with this dropout of its attention."""
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "attention_dropout")]
    before = [layer.attention_dropout for layer in layers]
    for layer in layers:
        layer.attention_dropout = rate
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.attention_dropout = old
