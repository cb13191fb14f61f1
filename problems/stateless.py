"""A problem's loss as a pure function of two problems' parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamprm.errors import UserError
from dreamprm.hypergradients.checkpointing import recomputing_alike

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem


class StatelessLoss(nn.Module):
    """A problem's mean loss on micro-batches as a pure function of φ below and α above.

    ``functional_call`` puts the given tensors in the places of the two modules' parameters for the
    time of one evaluation. Buffers are lent as copies, so that a batch norm's running statistics
    do not see the evaluations of a hypergradient. What is checkpointed is recomputed with the given
    tensors too.

    Args:
        problem: whose loss; either ``lower`` or ``upper``.
        lower, upper: the problems whose trainable parameters are φ and α.
        batches: what the loss is of.
        autocast: whether the problem's own autocast holds.

    Raises:
        UserError: one module is a part of the other.
    """

    def __init__(
        self,
        problem: Problem,
        lower: Problem,
        upper: Problem,
        batches: Sequence[Any],
        autocast: bool = True,
    ) -> None:
        super().__init__()
        self.lower = lower.module
        self.upper = upper.module
        self._problem = [problem]  # in a list, since nn.Module must not take it for a submodule
        self._batches, self._autocast = batches, autocast
        self._names = tuple(
            [name for name, p in self.named_parameters(prefix="") if p.requires_grad]
        )
        if len(self._names) != len(lower.trainable_parameters()) + len(
            upper.trainable_parameters()
        ):
            raise UserError(
                f"problems {lower.name!r} and {upper.name!r} share trainable parameters; "
                "expected modules apart from each other, linked by the problems' names"
            )

    def forward(self) -> Tensor:
        """The loss with the parameters that are in place now."""
        (problem,) = self._problem
        step = problem.training_step_exec if self._autocast else problem.training_step
        found = [step(batch) for batch in self._batches]
        losses = [loss["loss"] if isinstance(loss, dict) else loss for loss in found]
        if len(losses) == 1:
            return losses[0]
        shares = losses[0].new_tensor(problem.shares(self._batches))
        return torch.stack(losses) @ shares

    def of(self, lower_params: list[Tensor], upper_params: list[Tensor]) -> Tensor:
        """The loss at these parameters."""
        tensors = dict(zip(self._names, [*lower_params, *upper_params], strict=True))
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        called = partial(torch.func.functional_call, self, tensors | buffers, ())
        return recomputing_alike(called)()
