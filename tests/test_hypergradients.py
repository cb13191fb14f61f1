"""Every method against the closed form of a domain-weighted ridge regression."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention, softplus

from dreamprm.errors import UserError
from dreamprm.hypergradients import METHODS, Method, hypergradient, register, resolve
from dreamprm.hypergradients.products import PRODUCTS
from dreamprm.hypergradients.solvers import SOLVERS

VARIABLES, DOMAINS, RIDGE = 6, 3, 0.1
EXACT = ("double_backward", "forward")


class Ridge:
    """L(φ, α) = ½ Σ_k w_k(α) mean_k (xφ − y)² + ½ λ|φ|², M(φ, α) = ½ mean (x'φ − y')² + ½ |α|²."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.x, self.y = draw(DOMAINS, 20, VARIABLES), draw(DOMAINS, 20)
        self.x_meta, self.y_meta = draw(10, VARIABLES), draw(10)
        self.alpha = draw(DOMAINS)
        self.phi = self.solution(self.alpha)

    def weights(self, alpha: Tensor) -> Tensor:
        return softplus(alpha) / softplus(alpha).mean()

    def normal_equations(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        n = self.x.shape[1]
        h = torch.einsum("k,kni,knj->ij", self.weights(alpha), self.x, self.x) / n
        b = torch.einsum("k,kni,kn->i", self.weights(alpha), self.x, self.y) / n
        return h + RIDGE * torch.eye(VARIABLES, dtype=h.dtype), b

    def solution(self, alpha: Tensor) -> Tensor:
        return torch.linalg.solve(*self.normal_equations(alpha))

    def lower(self, lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        phi = torch.cat(lower)
        losses = (self.x @ phi - self.y).square().mean(-1)
        return 0.5 * (self.weights(upper[0]) * losses).sum() + 0.5 * RIDGE * phi.square().sum()

    def upper(self, lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        residual = self.x_meta @ torch.cat(lower) - self.y_meta
        return 0.5 * residual.square().mean() + 0.5 * upper[0].square().sum()

    def parameters(self) -> list[Tensor]:
        """φ in two tensors, to catch what works for one only."""
        return [self.phi[:2], self.phi[2:]]

    def dense(self, inverse: Tensor) -> Tensor:
        """dM/dα with a dense matrix in the place of H⁻¹."""
        hessian_of = torch.autograd.functional.hessian

        def joint(phi: Tensor, alpha: Tensor) -> Tensor:
            return self.lower([phi], [alpha])

        cross = hessian_of(joint, (self.phi, self.alpha))[0][1]  # [variables, domains]
        v = self.x_meta.T @ (self.x_meta @ self.phi - self.y_meta) / len(self.y_meta)
        return self.alpha - cross.T @ inverse @ v

    def run(self, method: str, **options: float) -> Tensor:
        (gradient,) = hypergradient(
            method, self.upper, self.lower, self.parameters(), [self.alpha], **options
        )
        return gradient


@pytest.fixture(scope="module")
def ridge() -> Ridge:
    return Ridge()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_dense_answer_is_the_derivative_of_the_solution_map(ridge: Ridge) -> None:
    alpha = ridge.alpha.clone().requires_grad_()
    ridge.upper([ridge.solution(alpha)], [alpha]).backward()
    hessian, _ = ridge.normal_equations(ridge.alpha)
    # Both are exact: what is left is the rounding of float64, times the condition number.
    assert relative(ridge.dense(torch.linalg.inv(hessian)), alpha.grad) < 1e-12


@pytest.mark.parametrize("product", EXACT)
def test_a_long_neumann_series_gives_the_exact_hypergradient(ridge: Ridge, product: str) -> None:
    hessian, _ = ridge.normal_equations(ridge.alpha)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    alpha = 1 / float(eigenvalues[-1])
    # The error shrinks by (1 − λ_min/λ_max) a term; enough terms for 1e-10.
    terms = int(-23 / torch.log1p(-eigenvalues[0] * alpha)) + 1
    found = ridge.run(f"neumann+{product}", iterations=terms, alpha=alpha)
    assert relative(found, ridge.dense(torch.linalg.inv(hessian))) < 1e-8


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("terms", [0, 1, 4])
def test_a_short_neumann_series_is_the_truncated_one(
    ridge: Ridge, product: str, terms: int
) -> None:
    hessian, _ = ridge.normal_equations(ridge.alpha)
    step = 0.2
    contraction = torch.eye(VARIABLES, dtype=torch.float64) - step * hessian
    series = step * sum(torch.linalg.matrix_power(contraction, j) for j in range(terms + 1))
    found = ridge.run(f"neumann+{product}", iterations=terms, alpha=step)
    # L is quadratic in φ, so central differences are exact too, up to rounding over the step 0.01.
    assert relative(found, ridge.dense(series)) < (1e-12 if product in EXACT else 1e-9)


@pytest.mark.parametrize("method", ["t1t2", "darts", "identity+double_backward"])
def test_the_identity_solver_takes_the_hessian_for_the_identity(ridge: Ridge, method: str) -> None:
    expected = ridge.dense(torch.eye(VARIABLES, dtype=torch.float64))
    assert relative(ridge.run(method), expected) < (1e-12 if method != "darts" else 1e-9)


def test_neumann_by_its_short_name_is_double_backward(ridge: Ridge) -> None:
    assert torch.equal(ridge.run("neumann"), ridge.run("neumann+double_backward"))


@pytest.mark.parametrize("method", METHODS)
def test_structures_are_kept_and_tensors_left_alone(ridge: Ridge, method: str) -> None:
    phi = {"a": ridge.phi[:2].clone(), "b": nn.Parameter(ridge.phi[2:].clone())}
    alpha = {"alpha": ridge.alpha.clone()}
    before = {name: tensor.detach().clone() for name, tensor in phi.items()}
    found = hypergradient(
        method,
        lambda lower, upper: ridge.upper([lower["a"], lower["b"]], [upper["alpha"]]),
        lambda lower, upper: ridge.lower([lower["a"], lower["b"]], [upper["alpha"]]),
        phi,
        alpha,
    )
    assert torch.equal(found["alpha"], ridge.run(method))
    assert all(torch.equal(phi[name], before[name]) for name in phi)
    assert not phi["a"].requires_grad
    assert phi["b"].grad is None


def small_network_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    """Two domains of three inputs each through a layer with dropout and causal attention."""
    x = torch.linspace(-1, 1, 48, dtype=lower[0].dtype).reshape(6, 2, 4)
    hidden = dropout(torch.tanh(x @ lower[0]), 0.5)
    # A head is four numbers wide.
    mixed = scaled_dot_product_attention(hidden[:, None], hidden[:, None], hidden[:, None])
    losses = (mixed[:, 0] @ lower[1]).square().mean((1, 2))
    return (softplus(upper[0])[torch.tensor([0, 0, 0, 1, 1, 1])] * losses).mean()


def small_network(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    lower = [torch.randn(4, 4, generator=generator), torch.randn(4, 3, generator=generator)]
    return [t.to(dtype) for t in lower], [torch.zeros(2, dtype=dtype)]


def small_upper(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
    return sum(p.square().sum() for p in lower)  # type: ignore[return-value]


@pytest.mark.parametrize("product", ["forward", "finite_difference"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_dropout_mask_serves_all_evaluations(solver: str, product: str) -> None:
    lower, upper = small_network(torch.float64)
    answers = []
    for name in ("double_backward", product):
        torch.manual_seed(7)
        answers += hypergradient(f"{solver}+{name}", small_upper, small_network_loss, lower, upper)
    # Another mask changes the answer by its own size; the differences' own error is O(ε²).
    assert relative(answers[1], answers[0]) < (1e-12 if product == "forward" else 1e-3)


def test_the_random_state_moves_on_by_one_evaluation() -> None:
    lower, upper = small_network(torch.float64)
    torch.manual_seed(7)
    small_network_loss(lower, upper)
    after_one = torch.get_rng_state()
    for method in METHODS:
        torch.manual_seed(7)
        hypergradient(method, small_upper, small_network_loss, lower, upper)
        assert torch.equal(torch.get_rng_state(), after_one)


def test_under_bf16_autocast_forward_mode_is_the_closer_one() -> None:
    # The differences' step of 0.01 / ‖v‖ is below the spacing of bf16 numbers near 1 (2⁻⁸).
    lower, upper = small_network(torch.float32)

    def loss_without_dropout(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        x = torch.linspace(-1, 1, 32).reshape(8, 4)
        losses = (torch.tanh(x @ lower[0]) @ lower[1]).float().square().mean(1)
        return (softplus(upper[0])[torch.tensor([0, 1] * 4)] * losses).mean()

    def in_bf16(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_without_dropout(lower, upper)

    exact = hypergradient("t1t2", small_upper, loss_without_dropout, lower, upper)[0]
    error = {
        name: relative(hypergradient(name, small_upper, in_bf16, lower, upper)[0], exact)
        for name in ("t1t2", "darts")
    }
    assert error["t1t2"] < 0.05
    assert error["darts"] > 4 * error["t1t2"]


def test_a_vector_of_zeros_gives_zeros(ridge: Ridge) -> None:
    for method in METHODS:
        (found,) = hypergradient(
            method,
            lambda lower, upper: upper[0].square().sum() / 2,
            ridge.lower,
            ridge.parameters(),
            [ridge.alpha],
        )
        assert torch.equal(found, ridge.alpha)


@pytest.mark.parametrize("method", [*METHODS, "neumann+forward", "neumann+finite_difference"])
def test_a_lower_loss_without_alpha_is_refused(ridge: Ridge, method: str) -> None:
    with pytest.raises(UserError, match="does not depend on the upper parameters"):
        hypergradient(
            method,
            ridge.upper,
            lambda lower, upper: lower[0].square().sum(),
            ridge.parameters(),
            [ridge.alpha],
        )


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("neuman", {}, "did you mean 'neumann'"),
        ("identity+foward", {}, r"did you mean 'identity\+forward'"),
        ("darts", {"eps": 0.1}, "unknown option of hypergradient method 'darts' 'eps'"),
        ("t1t2", {"iterations": 3}, "has no options"),
        ("darts", {"epsilon": 0.0}, "epsilon is 0.0, expected more than 0"),
        ("neumann", {"iterations": -1}, "iterations is -1"),
        ("neumann", {"iterations": 1.5}, "iterations is 1.5"),
        ("neumann", {"alpha": -0.1}, "alpha is -0.1"),
    ],
)
def test_wrong_names_and_options_are_named(
    ridge: Ridge, method: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve(method).check(options)
    with pytest.raises(UserError, match=message):
        ridge.run(method, **options)


def test_losses_must_be_finite_scalars(ridge: Ridge) -> None:
    args = (ridge.parameters(), [ridge.alpha])
    with pytest.raises(UserError, match=r"upper loss has shape \(3,\)"):
        hypergradient("t1t2", lambda p, a: a[0] * p[0].sum(), ridge.lower, *args)
    with pytest.raises(UserError, match=r"lower loss has shape \(3,\)"):
        hypergradient("t1t2", ridge.upper, lambda p, a: a[0] * p[0].sum(), *args)
    with pytest.raises(UserError, match="not finite"):
        hypergradient("t1t2", lambda p, a: p[0].sum() * float("nan"), ridge.lower, *args)


def test_a_third_party_registers_a_method(ridge: Ridge) -> None:
    register(Method("doubled", lambda hvp, v: [2 * x for x in v], PRODUCTS["forward"]))
    try:
        twice = 2 * torch.eye(VARIABLES, dtype=torch.float64)
        assert relative(ridge.run("doubled"), ridge.dense(twice)) < 1e-12
        with pytest.raises(UserError, match="already"):
            register(METHODS["doubled"])
    finally:
        del METHODS["doubled"]
