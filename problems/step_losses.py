"""Losses of a step's score against its label, by name; both take [b, S] and give [b, S]."""

from torch.nn.functional import binary_cross_entropy_with_logits

STEP_LOSSES = {
    "squared_error": lambda logits, labels: (logits.sigmoid() - labels).square(),
    "cross_entropy": lambda logits, labels: binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    ),
}
