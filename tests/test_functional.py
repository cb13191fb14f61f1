"""The functional entry point: names, options, structures, registration, refusals."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import (
    softplus,
)

from dreamprm.errors import UserError
from dreamprm.hypergradients import (
    METHODS,
    DirectMethod,
    ImplicitMethod,
    Point,
    hypergradient,
    implicit,
    register,
    resolve,
)
from dreamprm.hypergradients.products import PRODUCTS, PrecisionWarning
from dreamprm.hypergradients.references import (
    Reference,
    relative_error,
)
from tests.references import (
    EXACT,
    EYE,
    call,
    in_bf16,
    loss_without_dropout,
    run,
    small_network,
    small_upper,
)


@pytest.mark.parametrize(
    ("solver", "dtype", "autocast", "expected"),
    [
        ("identity", torch.float32, False, "forward mode"),
        ("identity", torch.float32, True, "forward mode"),
        ("identity", torch.bfloat16, False, "forward mode"),
        ("sama", torch.float64, False, "forward mode"),
        ("sama", torch.float32, True, "forward mode"),
        ("cg", torch.float32, True, "double backward"),
        ("neumann", torch.float32, False, "double backward"),
    ],
)
def test_the_right_product_for_the_precision_is_chosen_and_logged(
    solver: str,
    dtype: torch.dtype,
    autocast: bool,
    expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lower, upper = small_network(dtype)

    def upper_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        return sum((p @ p.T).float().square().sum() for p in lower)  # type: ignore[return-value]

    def lower_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        x = torch.linspace(-1, 1, 32).reshape(8, 4).to(dtype)
        losses = (torch.tanh(x @ lower[0]) @ lower[1]).float().square().mean(1)
        return (softplus(upper[0])[torch.tensor([0, 1] * 4)] * losses).mean()

    implicit._announce.cache_clear()
    caplog.set_level(logging.INFO, "dreamprm")
    options: dict[str, Any] = {"cg": {"damping": 30.0}}.get(solver, {})
    losses = (in_bf16(upper_loss), in_bf16(lower_loss)) if autocast else (upper_loss, lower_loss)
    for _ in range(2):
        (found,) = call(solver, *losses, lower, **options)(upper)
    assert caplog.text.count(f"{solver}: products by {expected}") == 1
    named = f"{solver}+{expected.removesuffix(' mode').replace(' ', '_')}"
    assert torch.equal(found, call(named, *losses, lower, **options)(upper)[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_vector_of_zeros_gives_zeros(ridge: Reference, name: str) -> None:
    params = ridge.parameters()
    only_direct = call(name, lambda p, a: a[0].square().sum() / 2, ridge.lower, params)
    assert torch.equal(only_direct([ridge.alpha])[0], ridge.alpha)


@pytest.mark.parametrize(
    "name", [*METHODS, *(f"{s}+{p}" for s in ("identity", "neumann", "unrolled") for p in PRODUCTS)]
)
def test_a_lower_loss_without_alpha_is_refused(ridge: Reference, name: str) -> None:
    independent = call(name, ridge.upper, lambda p, a: p[0].square().sum(), ridge.parameters())
    with pytest.raises(UserError, match="does not depend on the upper parameters"):
        independent([ridge.alpha])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("neuman", {}, "did you mean 'neumann'"),
        ("identity+foward", {}, r"did you mean 'identity\+forward'"),
        ("cg+darts", {}, r"known are .*nystrom.*also with \+double_backward"),
        ("darts", {"eps": 0.1}, "unknown option of hypergradient method 'darts' 'eps'"),
        ("t1t2", {"iterations": 3}, "has no options"),
        ("sama", {"preconditioner": None}, "has no options, found 'preconditioner'"),
        ("darts", {"bits": 3}, "unknown option of hypergradient method 'darts' 'bits'"),
        ("darts", {"epsilon": 0.0}, "epsilon is 0.0, expected more than 0"),
        ("darts", {"epsilon": float("inf")}, "epsilon is inf, expected more than 0"),
        ("neumann", {"iterations": -1}, "iterations is -1, expected a whole number of at least 0"),
        ("neumann", {"iterations": 1.5}, "iterations is 1.5"),
        ("neumann", {"alpha": -0.1}, "alpha is -0.1"),
        ("neumann", {"damping": -1}, "damping is -1, expected at least 0"),
        ("cg", {"iterations": 0}, "iterations is 0, expected a whole number of at least 1"),
        ("cg", {"tolerance": -1e-3}, "tolerance is -0.001, expected at least 0"),
        ("cg", {"damping": "1"}, "damping is '1', expected at least 0"),
        ("nystrom", {"rank": 0}, "rank is 0"),
        ("nystrom", {"rank": 2, "damping": 0.0}, "damping is 0.0, expected more than 0"),
        ("nystrom", {"rank": 2, "seed": -1}, "seed is -1"),
        ("unrolled", {"iterations": 0}, "iterations is 0"),
        ("unrolled+finite_difference", {"iterations": 1, "epsilon": -1}, "epsilon is -1"),
        ("f2sa", {"iterations": 0}, "iterations is 0"),
        ("f2sa", {"alpha": 0}, "alpha is 0, expected more than 0"),
        ("f2sa", {"penalty": -2.0}, "penalty is -2.0, expected more than 0"),
        ("f2sa", {"rank": 2}, "unknown option of hypergradient method 'f2sa' 'rank'"),
    ],
)
def test_wrong_names_and_options_are_named(
    ridge: Reference, method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve(method).check(options)
    with pytest.raises(UserError, match=message):
        hypergradient(
            method, ridge.upper, ridge.lower, ridge.parameters(), [ridge.alpha], **options
        )


def test_what_can_only_be_known_at_the_point_is_refused_there(ridge: Reference) -> None:
    with pytest.raises(UserError, match="rank is 7, expected at most the 6 variables"):
        run(ridge, "nystrom", rank=7)
    args = (ridge.upper, ridge.lower, ridge.parameters(), [ridge.alpha])
    with pytest.raises(UserError, match="'sama' needs the lower optimizer: pass optimizer="):
        hypergradient("sama", *args)
    optimizer = torch.optim.SGD(args[2], lr=0.1)
    with pytest.raises(UserError, match="'unrolled' needs iterations"):
        hypergradient("unrolled", *args, optimizer=optimizer)
    with pytest.raises(UserError, match="'t1t2' takes no optimizer"):
        hypergradient("t1t2", *args, optimizer=optimizer)
    with pytest.raises(UserError, match=r"alpha=5.0: alpha must be less than 2 over the largest"):
        run(ridge, "neumann", iterations=500, alpha=5.0)
    with pytest.raises(UserError, match=r"alpha=5.0: alpha must be less than 2 over the largest"):
        run(ridge, "f2sa", iterations=500, alpha=5.0)


def test_losses_must_be_finite_scalars(ridge: Reference) -> None:
    args = (ridge.parameters(), [ridge.alpha])
    with pytest.raises(UserError, match=r"upper loss has shape \(3,\)"):
        hypergradient("t1t2", lambda p, a: a[0] * p[0].sum(), ridge.lower, *args)
    with pytest.raises(UserError, match=r"lower loss has shape \(3,\)"):
        hypergradient("t1t2", ridge.upper, lambda p, a: a[0] * p[0].sum(), *args)
    with pytest.raises(UserError, match="'t1t2' got a v that is not finite"):
        hypergradient("t1t2", lambda p, a: p[0].sum() * float("nan"), ridge.lower, *args)
    infinite = float("inf")
    with pytest.raises(FloatingPointError, match=r"hypergradient of method 'cg'.*is not finite"):
        hypergradient("cg", ridge.upper, lambda p, a: (a[0] * infinite).sum() * p[0].sum(), *args)


def halved(hvp: Any, v: list[Tensor], *, factor: float = 0.5) -> list[Tensor]:
    """q = factor · v."""
    return [factor * x for x in v]


def flat(point: Point, vector: list[Tensor], *, slope: float = 1.0) -> list[Tensor]:
    """A method that is no solver with a product: the sum of v, everywhere."""
    return [slope * sum(v.sum() for v in vector).expand(a.shape) for a in point.upper]


def test_a_third_party_registers_methods(ridge: Reference) -> None:
    register(ImplicitMethod("halved", halved, PRODUCTS["forward"], "me, today"))
    register(DirectMethod("flat", flat, "me, today"))
    try:
        assert relative_error(run(ridge, "halved", factor=2.0), ridge.dense(2 * EYE)) < 1e-12
        found = run(ridge, "flat", slope=2.0) - ridge.alpha
        assert torch.equal(found, 2 * (run(ridge, "flat") - ridge.alpha))
        with pytest.raises(UserError, match="option of hypergradient method 'halved' 'fator'"):
            run(ridge, "halved", fator=2.0)
        with pytest.raises(UserError, match="option of hypergradient method 'flat' 'slop'"):
            resolve("flat").check({"slop": 1.0})
        with pytest.raises(UserError, match="already"):
            register(METHODS["halved"])
        with pytest.raises(UserError, match=r"known are .*halved"):
            resolve("no such method")
    finally:
        del METHODS["halved"], METHODS["flat"]


def test_parameters_must_be_lists_or_dicts_of_real_tensors(ridge: Reference) -> None:
    phi, alpha = ridge.parameters(), [ridge.alpha]
    for wrong, message in (
        (phi[0], "lower_params is one Tensor"),
        ([], r"lower_params is \[\]"),
        ([phi[0], torch.zeros(4, dtype=torch.long)], r"lower_params holds a torch\.int64"),
        ([phi[0], torch.zeros(4, dtype=torch.complex64)], r"holds a torch\.complex64"),
        ([phi[0], 1.0], "lower_params holds a float"),
    ):
        with pytest.raises(UserError, match=message):
            hypergradient("t1t2", ridge.upper, ridge.lower, wrong, alpha)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="upper_params is one Tensor"):
        hypergradient("t1t2", ridge.upper, ridge.lower, phi, ridge.alpha)
    with pytest.raises(UserError, match="depends on neither"):
        hypergradient("t1t2", lambda p, a: torch.ones(()), ridge.lower, phi, alpha)
    with torch.no_grad():
        assert relative_error(ridge.run("cg"), ridge.exact()) < 1e-12


def test_what_has_no_forward_mode_is_named(ridge: Reference) -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    def lower(p: list[Tensor], a: list[Tensor]) -> Tensor:
        return ridge.lower([Opaque.apply(x) for x in p], a)

    with pytest.raises(UserError, match=r"forward mode does not work .*solver\+double_backward"):
        hypergradient("t1t2", ridge.upper, lower, ridge.parameters(), [ridge.alpha])
    assert hypergradient("darts", ridge.upper, lower, ridge.parameters(), [ridge.alpha])


def test_the_penalty_method_warns_below_fp32() -> None:
    lower, upper = small_network(torch.float32)
    losses = small_upper, in_bf16(loss_without_dropout)
    with pytest.warns(PrecisionWarning, match="f2sa"):
        hypergradient("f2sa", in_bf16(lambda p, a: (p[0] @ p[0].T).sum()), losses[1], lower, upper)


def test_what_a_third_party_gets_wrong_is_named_after_it(ridge: Reference) -> None:
    register(ImplicitMethod("short", lambda hvp, v: v[:1], PRODUCTS["forward"]))
    register(DirectMethod("long", lambda point, v: [torch.zeros(30)]))
    try:
        with pytest.raises(
            UserError, match=r"solver of hypergradient method 'short' gave .*\(2,\)"
        ):
            run(ridge, "short")
        with pytest.raises(UserError, match=r"method 'long' gave tensors of shapes \[\(30,\)\]"):
            run(ridge, "long")
        with pytest.raises(UserError, match="'long' takes no other product"):
            resolve("long+forward")
    finally:
        del METHODS["short"], METHODS["long"]
    with pytest.raises(UserError, match="stands between solver and product"):
        register(DirectMethod("a+b", flat))
    for name in ("f2sa+forward", "darts+forward"):
        with pytest.raises(UserError, match="takes no other product"):
            resolve(name)


def test_what_is_registered_takes_other_products(ridge: Reference) -> None:
    register(ImplicitMethod("halved", halved, PRODUCTS["forward"]))
    try:
        expected = ridge.dense(0.5 * EYE)
        for product in EXACT:
            assert relative_error(run(ridge, f"halved+{product}"), expected) < 1e-12
    finally:
        del METHODS["halved"]
