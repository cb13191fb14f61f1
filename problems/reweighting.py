"""The heart of the framework: a lower problem whose samples are weighted by an upper problem.

    lower   L(φ, α) = mean over samples of w_i(α) · ℓ_i(φ)
    upper   M(φ*(α)), on a meta set

The upper problem may give labels in the place of weights: a module that has ``corrected(batch)``
changes what ℓ_i is of. One that has ``project()`` keeps α in its bounds after every step.

A task says ℓ_i in ``sample_losses`` of its lower problem, M in ``training_step`` of its upper
problem, and which module turns α into weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dreamprm.errors import UserError
from dreamprm.problems.base import Problem
from dreamprm.problems.next_step import DIRECTION, alignments


class ReweightedProblem(Problem):
    """A lower problem: subclasses say the loss of each sample, the upper problem what it counts.

    The upper problem is the one named ``"weighting"``; without one every sample counts 1, or what
    ``fixed`` says.

    Args:
        name: by which the upper problem finds it.
        fixed: called as ``fixed(batch, losses) -> weights [b]`` where there is no upper problem;
            what a module of it keeps is part of a checkpoint.
    """

    def __init__(
        self,
        name: str = "model",
        *args: Any,
        fixed: Callable[[Any, Tensor], Tensor] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(name, *args, **parts)
        self.fixed = fixed
        self.given: Tensor | None = None  # the weights of an evaluation that asks what they do

    def size_of(self, batch: Any) -> int:
        """Its samples, where it says which they are."""
        return len(batch["index"]) if isinstance(batch, dict) and "index" in batch else 1

    def sample_losses(self, batch: Any) -> Tensor:
        """The loss of every sample in the batch, [b]."""
        raise NotImplementedError(f"{type(self).__name__} does not say its sample_losses")

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        """The weighted mean of the sample losses, and for the logs the plain mean."""
        batch = self.corrected(batch)
        return self.weighted(batch, self.sample_losses(batch))

    def weighted(self, batch: Any, losses: Tensor) -> dict[str, Tensor]:
        """The same of sample losses, [b], that are there already."""
        self._check_losses(batch, losses)
        return {
            "loss": (self.sample_weights(batch, losses) * losses).mean(),
            "unweighted_loss": losses.detach().mean(),
        }

    def _check_losses(self, batch: Any, losses: Tensor) -> None:
        """A mean, or a column, would be weighted without a word, and mean nothing."""
        known = isinstance(batch, dict) and "index" in batch
        expected = f"[{len(batch['index'])}]" if known else "[b]"
        if losses.dim() != 1 or (known and len(losses) != len(batch["index"])):
            raise UserError(
                f"sample_losses of problem {self.name!r} gave the shape {list(losses.shape)}, "
                f"expected {expected}: a loss for every sample of the batch"
            )

    def corrected(self, batch: Any) -> Any:
        """A batch as the losses are taken of it: with other labels, where they are learned."""
        source = self.weighting.module if self.parents else self.fixed
        correct = getattr(source, "corrected", None)
        return batch if correct is None else correct(batch)

    def sample_weights(self, batch: Any, losses: Tensor) -> Tensor:
        """What every sample of a batch counts, [b]; 1 in the first ``warmup_steps``."""
        if self.given is not None:
            return self.given
        plain = 0 < self.count <= self.warmup_steps
        if self.parents:
            aligned = self.weighting.looks_ahead and not plain and alignments(self, batch, losses)
            if isinstance(aligned, Tensor):
                return self.weighting.module.of_alignments(aligned)
            weights = self.weighting(batch, losses)
            # A step that a method goes back through depends on α, by nothing.
            return 0 * weights + 1 if plain else weights
        if plain:
            return torch.ones_like(losses)
        return torch.ones_like(losses) if self.fixed is None else self.fixed(batch, losses)

    def state_dict(self) -> dict[str, Any]:
        """As of any problem, and what ``fixed`` keeps."""
        kept = self.fixed.state_dict() if isinstance(self.fixed, nn.Module) else {}
        return super().state_dict() | {"fixed": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken."""
        super().load_state_dict(state_dict)
        if isinstance(self.fixed, nn.Module):
            self.fixed.load_state_dict(state_dict["fixed"])


class WeightingProblem(Problem):
    """An upper problem: its module gives the weights; subclasses say the meta loss.

    The module is called as ``module(batch, losses) -> weights [b]`` on batches of the lower
    problem, and may have ``named_weights() -> dict[str, float]`` for the logs. Where it has them,
    the lower problem's batches go through ``corrected(batch) -> batch`` first, and ``project()`` is
    called after every step.

    A module that has ``of_alignments(alignments) -> weights [b]`` has no parameters: a step of this
    problem keeps ∇_φ M, and every lower batch that follows is weighted by its samples' inner
    products with it.
    """

    def __init__(self, *args: Any, name: str = "weighting", **parts: Any) -> None:
        super().__init__(name, *args, **parts)

    @property
    def looks_ahead(self) -> bool:
        """Whether weights are of the coming step."""
        return hasattr(self.module, "of_alignments")

    def _through(self, path: list[Problem], vector: list[Tensor]) -> list[Tensor]:
        if not self.looks_ahead:
            return super()._through(path, vector)
        self._memory[DIRECTION] = vector
        return []

    @property
    def param_callback(self) -> Callable[[], None] | None:
        """What betty calls after every step: the module's own projection, where it has one."""
        return getattr(self.module, "project", None)
