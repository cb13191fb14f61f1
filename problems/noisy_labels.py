"""The two problems of noisy labels: a classifier, and which labels it is to trust."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem


class DigitClassifier(ReweightedProblem):
    """The lower problem: classification, a sample being an image."""

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of every image, [b]."""
        return cross_entropy(self(batch["image"]), batch["label"], reduction="none")


class LabelTrust(WeightingProblem):
    """The upper problem: the classifier's loss on the clean meta set."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy on meta images."""
        return cross_entropy(self.model(batch["image"]), batch["label"])
