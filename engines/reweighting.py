"""The Engine of every reweighting task: it links a lower problem to the one that weights it."""

from __future__ import annotations

from typing import Any

from dreamprm.engines.base import Engine, EngineConfig
from dreamprm.errors import UserError
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem
from dreamprm.training.pictures import weight_bars


class ReweightingEngine(Engine):
    """Runs a lower problem with the weights that an upper problem learns for its samples.

    Args:
        lower: says the loss of each sample.
        upper: says the meta loss and owns the weighting module; None trains the lower problem
            alone, every sample counting 1.
        config: an :class:`~dreamprm.engines.base.EngineConfig`.

    Raises:
        UserError: the upper problem is not named ``"weighting"``, by which the lower one finds it.
    """

    def __init__(
        self,
        lower: ReweightedProblem,
        upper: WeightingProblem | None,
        config: EngineConfig,
    ) -> None:
        self.lower, self.upper = lower, upper
        if upper is None:
            super().__init__([lower], config, {"u2l": {}, "l2u": {}})
            return
        if upper.name != "weighting":
            raise UserError(f"the upper problem is named {upper.name!r}, expected 'weighting'")
        dependencies = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
        super().__init__([upper, lower], config, dependencies)

    def weights(self) -> dict[str, float]:
        """The learned weights by name, where the weighting module names them."""
        named = getattr(self.upper and self.upper.module, "named_weights", None)
        return named() if named is not None else {}

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
