"""Hypergradients: solvers × products, the named methods, and the functional entry point."""

from dreamprm.hypergradients.methods import (
    METHODS,
    Method,
    hypergradient,
    implicit_gradient,
    register,
    resolve,
)

__all__ = ["METHODS", "Method", "hypergradient", "implicit_gradient", "register", "resolve"]
