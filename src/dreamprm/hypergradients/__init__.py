"""Hypergradients: solvers × products, methods beside them, and the functional entry point."""

from dreamprm.hypergradients.functional import hypergradient
from dreamprm.hypergradients.implicit import ImplicitMethod
from dreamprm.hypergradients.interface import DirectMethod, LowerStep, Method, Point
from dreamprm.hypergradients.registry import METHODS, indirect_gradient, register, resolve

__all__ = [
    "METHODS",
    "DirectMethod",
    "ImplicitMethod",
    "LowerStep",
    "Method",
    "Point",
    "hypergradient",
    "indirect_gradient",
    "register",
    "resolve",
]
