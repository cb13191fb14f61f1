"""Our Problem on betty's: this project's hypergradients, and the defects of betty-ml 0.2.1 met.

Each remedy names the defect that it answers and has a test in tests/test_problems_base.py that
fails without it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from betty.configs import Config
from betty.problems import ImplicitProblem
from torch import Tensor, nn

from dreamprm.data.batches import to_device
from dreamprm.errors import UserError
from dreamprm.hypergradients import implicit_gradient, resolve


@dataclass
class ProblemConfig(Config):
    """What betty's Config says, with the hypergradient method in this project's words.

    Attributes:
        type: on a lower problem, the method by which its uppers see through it; any name of
            ``dreamprm.hypergradients``.
        options: of that method, e.g. ``{"iterations": 10}``.
        precision: ``"fp32"``, or ``"bf16"`` for bf16 autocast over the parameters as they are.
        unroll_steps: steps of this problem between two steps of its upper problem.
    """

    type: str = "t1t2"
    options: dict[str, Any] = field(default_factory=dict)
    log_step: int = 1

    def __post_init__(self) -> None:
        resolve(self.type).check(self.options)
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision is {self.precision!r}, expected 'fp32' or 'bf16'")
        if not self.first_order:
            raise UserError(
                "first_order=False asks for unrolled differentiation, "
                "which an implicit problem does not do"
            )
        if self.unroll_steps < 1:
            raise UserError(f"unroll_steps is {self.unroll_steps}, expected at least 1")


class Problem(ImplicitProblem):
    """An optimisation problem of a multilevel program; subclasses say ``training_step(batch)``.

    Module, optimizer, scheduler and data loader come by the constructor or from betty's
    ``configure_module`` and its sisters. A problem reaches the others by their names, as
    attributes.

    Args:
        name: how the other problems and the logs call it.
        config: a :class:`ProblemConfig`.
        module, optimizer, scheduler, train_data_loader: as in torch.

    Raises:
        UserError: the config is betty's own, whose hypergradient options would be ignored here.
    """

    config: ProblemConfig

    def __init__(self, name: str, config: ProblemConfig | None = None, **parts: Any) -> None:
        config = config if config is not None else ProblemConfig()
        if not isinstance(config, ProblemConfig):
            raise UserError(
                f"problem {name!r} got a {type(config).__module__}.{type(config).__name__}, "
                "expected a dreamprm.problems.ProblemConfig"
            )
        super().__init__(name, config, **parts)
        self.stats: dict[str, float] = {}

    # --- betty's defects -------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained; betty's returns frozen ones too."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def patch_optimizer(self) -> None:
        """Keeps the optimizer; betty rebuilds it from ``defaults``.

        That loses parameter groups, and fails for AdamW. The device move of ``patch_module``
        keeps every Parameter object, so there is nothing to rebuild.
        """
        if self.is_implemented("param_groups"):
            raise UserError(
                f"problem {self.name!r} defines param_groups(), which is not used: "
                "give the groups to the optimizer"
            )
        if self.optimizer is None and not self.is_implemented("custom_optimizer_step"):
            raise UserError(f"problem {self.name!r} has no optimizer")

    def patch_scheduler(self) -> None:
        """Keeps the scheduler; betty rebuilds it from its attributes.

        That fails for SequentialLR and OneCycleLR.
        """

    def training_step_exec(self, batch: Any) -> Any:
        """``training_step`` under autocast of the device in use; betty's is hard-wired to CUDA."""
        with torch.autocast(
            torch.device(self.device).type, self.dtype, enabled=self.precision != "fp32"
        ):
            return self.training_step(batch)

    def get_batch_single_loader(self, idx: int) -> Any:
        """The next batch, on the device however nested; betty moves the first level only."""
        try:
            batch = next(self.train_data_iterator[idx])
        except StopIteration:
            if idx == 0:
                self.epoch_callback_exec()
            self.epoch_counter[idx] += 1
            self.train_data_iterator[idx] = iter(self.train_data_loader[idx])
            batch = next(self.train_data_iterator[idx])
        return to_device(batch, self.device)

    def log(self, stats: dict[str, Any], global_step: int | None) -> None:
        """Keeps the numbers of the step for the Engine; betty prints every one of them."""
        self.stats = {
            name: float(value)
            for name, value in stats.items()
            if not isinstance(value, Tensor) or value.numel() == 1
        }

    def get_loss(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """As betty's, and stops at a loss that is not finite instead of training on.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        loss, stats = super().get_loss(batch)
        if not math.isfinite(stats["loss"]):
            raise FloatingPointError(
                f"the loss of problem {self.name!r} is {stats['loss']} in its step {self.count}"
            )
        return loss, stats

    # --- hypergradients --------------------------------------------------------------------

    def backward(
        self,
        loss: Tensor,
        params: list[nn.Parameter],
        paths: list[list[Problem]],
        create_graph: bool = False,
        retain_graph: bool = False,
        allow_unused: bool = True,
    ) -> None:
        """Adds dM/dα to ``.grad``: the direct gradient and one implicit term per path.

        One backward pass gives both the direct gradient and v = ∇_φ M. Each problem between the
        ends of a path then applies its own method (see :meth:`implicit_gradient`).
        """
        if not paths:
            super().backward(loss, params, paths, create_graph, retain_graph, allow_unused)
            return
        inputs = list(params)
        for path in paths:
            inputs += path[1].trainable_parameters()
        grads = iter(torch.autograd.grad(loss, inputs, allow_unused=True))
        self.set_grads(params, _take(grads, params))
        for path in paths:
            lower_params = path[1].trainable_parameters()
            vector = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(lower_params, _take(grads, lower_params), strict=True)
            ]
            for current, above in itertools.pairwise(path[1:]):
                vector = current.implicit_gradient(vector, above)
            self.set_grads(params, vector)

    def implicit_gradient(self, vector: list[Tensor], above: Problem) -> list[Tensor]:
        """−(∂²L/∂α∂φ)ᵀ H⁻¹ v by this problem's method, on the batch of its last step.

        Args:
            vector: v, shaped as this problem's trainable parameters φ.
            above: the problem whose trainable parameters are α.

        Returns:
            shaped as α.
        """
        loss = _StatelessLoss(self, above)
        return implicit_gradient(
            self.config.type,
            vector,
            loss.of,
            self.trainable_parameters(),
            above.trainable_parameters(),
            **self.config.options,
        )

    # --- checkpoints -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Module, optimizer, scheduler, step count and the place in the data.

        betty keeps the first three only. A data loader takes part if it has ``state_dict``, as
        ``dreamprm.data.batches.BatchStream`` and torchdata's loaders do; another one starts a new
        epoch after a resume.
        """
        return super().state_dict() | {
            "count": self._count,
            "loaders": [
                loader.state_dict() if hasattr(loader, "state_dict") else None
                for loader in self.train_data_loader or ()
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken."""
        super().load_state_dict(state_dict)
        self._count = state_dict["count"]
        for loader, state in zip(self.train_data_loader or (), state_dict["loaders"], strict=True):
            if state is not None:
                loader.load_state_dict(state)
        if self.train_data_loader is not None:
            self.train_data_iterator = [iter(loader) for loader in self.train_data_loader]


def _take(grads: Iterator[Tensor | None], like: list[nn.Parameter]) -> list[Tensor | None]:
    return [next(grads) for _ in like]


class _StatelessLoss(nn.Module):
    """A problem's loss on its current batch as a pure function of (φ, α).

    ``functional_call`` puts the given tensors in the places of the two modules' parameters for the
    time of one evaluation. Buffers are lent as copies, so that a batch norm's running statistics
    do not see the evaluations of a hypergradient.
    """

    def __init__(self, problem: Problem, above: Problem) -> None:
        super().__init__()
        self.lower = problem.module
        self.upper = above.module
        self._problem = [problem]  # in a list, since nn.Module must not take it for a submodule
        self._names = tuple(
            [name for name, p in self.named_parameters(prefix="") if p.requires_grad]
        )

    def forward(self) -> Tensor:
        (problem,) = self._problem
        loss = problem.training_step_exec(problem.cur_batch)
        return loss["loss"] if isinstance(loss, dict) else loss

    def of(self, lower_params: list[Tensor], upper_params: list[Tensor]) -> Tensor:
        """The loss at these parameters."""
        tensors = dict(zip(self._names, [*lower_params, *upper_params], strict=True))
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return torch.func.functional_call(self, tensors | buffers, ())
