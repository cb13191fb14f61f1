"""What turns the upper parameters α into a weight for every sample; ``WEIGHTINGS`` by name."""

from dreamprm.weighting.registry import WEIGHTINGS, Rows, Weighting, build_weighting, register

__all__ = ["WEIGHTINGS", "Rows", "Weighting", "build_weighting", "register"]
