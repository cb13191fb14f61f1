"""The Engine of every reweighting task: it links a lower problem to the one that weights it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.engines.pictures import weight_bars
from dreamprm.errors import UserError
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem


class ReweightingEngine(Engine):
    """Runs a lower problem with the weights that an upper problem learns for its samples.

    Args:
        lower: says the loss of each sample.
        upper: says the meta loss and owns the weighting module; None trains the lower problem
            alone, every sample counting 1.
        config: an :class:`~dreamprm.engines.base.EngineConfig`.
        validate: gives the numbers of a validation of the lower module; none by default.

    Raises:
        UserError: the upper problem is not named ``"weighting"``, by which the lower one finds it.
    """

    def __init__(
        self,
        lower: ReweightedProblem,
        upper: WeightingProblem | None,
        config: EngineConfig,
        validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    ) -> None:
        self.lower, self.upper, self.validate = lower, upper, validate
        self.rows: Any = None  # the training rows, where a run writes their weights by name
        if upper is None:
            super().__init__([lower], config, {"u2l": {}, "l2u": {}})
            return
        if upper.name != "weighting":
            raise UserError(f"the upper problem is named {upper.name!r}, expected 'weighting'")
        dependencies = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
        super().__init__([upper, lower], config, dependencies)

    def validation(self) -> dict[str, float]:
        """What ``validate`` finds."""
        if self.validate is None:
            return {}
        found = self.validate(self.lower.module)
        if not isinstance(found, Mapping):
            raise UserError(f"validate gave a {type(found).__name__}, expected numbers by name")
        return dict(found)

    @property
    def weights_from(self) -> Any:
        """What gives the weights: the upper module, or fixed ones; None where every one is 1."""
        return self.upper.module if self.upper is not None else self.lower.fixed

    def weights(self) -> dict[str, float]:
        """The weights by name, where the weighting names them."""
        named = getattr(self.weights_from, "named_weights", None)
        return named() if named is not None else {}

    def row_weights(self) -> Tensor | None:
        """The weight of every training row, [n], where each has its own."""
        found = getattr(self.weights_from, "row_weights", None)
        return found() if found is not None else None

    def row_labels(self) -> list[tuple[Any, Any]] | None:
        """The label of every training row as it was given and as it is, where they are learned."""
        found = getattr(self.weights_from, "row_labels", None)
        if found is None:
            return None
        return list(zip(self.weights_from.given, found(), strict=True))

    def histograms(self) -> dict[str, list[float]]:
        """The weights of the rows, where each has its own."""
        weights = self.row_weights()
        return {} if weights is None else {"row_weights": weights.tolist()}

    def metrics(self) -> dict[str, float]:
        """Each weight under its name."""
        return {f"weights/{name}": weight for name, weight in self.weights().items()}

    def figures(self) -> dict[str, Any]:
        """A bar for every weight."""
        weights = self.weights()
        return {"weights": weight_bars(weights)} if weights else {}

    def charts(self) -> dict[str, str]:
        """All weights in one chart."""
        return {"weights": r"weights/.+"} if self.weights() else {}
