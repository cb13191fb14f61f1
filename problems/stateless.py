"""A problem's loss as a pure function of two problems' parameters, now or as it once was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from betty.problems import ImplicitProblem
from torch import Tensor, nn

from dreamprm.errors import UserError
from dreamprm.hypergradients.checkpointing import recomputing_alike

if TYPE_CHECKING:
    from dreamprm.problems.base import Problem


class StatelessLoss(nn.Module):
    """A problem's mean loss on micro-batches as a pure function of φ below and α above.

    ``functional_call`` puts the given tensors in the places of the two modules' parameters for the
    time of one evaluation. Buffers, those of the other problems too, are lent as copies, so that a
    batch norm's running statistics do not see the evaluations of a hypergradient. What is
    checkpointed is recomputed with the given tensors too.

    Args:
        problem: whose loss; either ``lower`` or ``upper``.
        lower, upper: the problems whose trainable parameters are φ and α.
        batches: what the loss is of.
        autocast: whether the problem's own autocast holds.
        seen: the state in which the loss finds the problems, by their names; see :func:`state_of`.
            What is not in it is as it is now.

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
        seen: Mapping[str, Mapping[str, Tensor]] | None = None,
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
        beside = [each for each in others(problem) if each is not lower and each is not upper]
        self.others = nn.ModuleList(each.module for each in beside)
        places = {f"others.{i}": each for i, each in enumerate(beside)}
        places |= {"lower": lower, "upper": upper}
        # What two problems share has the first one's name only.
        known = {name for name, _ in [*self.named_parameters(), *self.named_buffers()]}
        self._seen = {
            full: tensor
            for place, each in places.items()
            for name, tensor in (seen or {}).get(each.name, {}).items()
            if (full := f"{place}.{name}") in known
        }

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
        buffers = {name: self._seen.get(name, b).clone() for name, b in self.named_buffers()}
        given = self._seen | tensors | buffers
        return recomputing_alike(partial(torch.func.functional_call, self, given, ()))()


def others(problem: Problem) -> list[Problem]:
    """The other problems that a problem reaches, by their names, as attributes."""
    found = [each for each in vars(problem).values() if isinstance(each, ImplicitProblem)]
    return list(dict.fromkeys(each for each in found if each.module is not None))


def state_of(
    problem: Problem, before: Mapping[str, Tensor], parameters: bool = True
) -> dict[str, Tensor]:
    """Trainable parameters and buffers by name: copies, or those of ``before`` if they are equal.

    Args:
        problem: whose module; frozen parameters are left out.
        before: an earlier answer.
        parameters: whether they are wanted too.
    """
    named = [*problem.module.named_buffers()]
    if parameters:
        named += [(name, p) for name, p in problem.module.named_parameters() if p.requires_grad]
    return {
        name: before[name]
        if name in before and torch.equal(before[name], tensor)
        else tensor.detach().clone()
        for name, tensor in named
    }
