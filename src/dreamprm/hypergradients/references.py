"""Small bi-level problems whose hypergradient is known, to hold methods against.

    L(φ, α) = Σ_k w_k(α) · L_k(φ) + λ|φ|²/2,   w = softplus(α) / mean softplus(α)
    M(φ, α) = M(φ) + c|α|²/2

in float64, at the lower optimum φ*(α). With G = (∇L_1 … ∇L_K) the cross derivative is G ∂w/∂α, and
dM/dα = cα − (G ∂w/∂α)ᵀ H⁻¹ ∇M with a dense H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dreamprm.hypergradients.functional import hypergradient
from dreamprm.hypergradients.vectors import Tensors

VARIABLES, DOMAINS, RIDGE = 6, 3, 0.1


@dataclass(frozen=True)
class Reference:
    """One such problem.

    Attributes:
        name: what it is.
        domain_losses: φ [n] -> (L_1 … L_K), [K].
        meta_loss: φ [n] -> M(φ).
        alpha: α, [K].
        direct: c.
    """

    name: str
    domain_losses: Callable[[Tensor], Tensor]
    meta_loss: Callable[[Tensor], Tensor]
    alpha: Tensor
    direct: float = 0.0

    def lower(self, lower: Tensors, upper: Tensors) -> Tensor:
        """L, φ in any number of tensors."""
        phi = torch.cat(lower)
        weighted = (weights(upper[0]) * self.domain_losses(phi)).sum()
        return weighted + 0.5 * RIDGE * phi.square().sum()

    def upper(self, lower: Tensors, upper: Tensors) -> Tensor:
        """M, φ in any number of tensors."""
        return self.meta_loss(torch.cat(lower)) + 0.5 * self.direct * upper[0].square().sum()

    def solution(self, alpha: Tensor | None = None) -> Tensor:
        """φ*(α), by Newton's method to a gradient of less than 1e-12."""
        alpha = self.alpha if alpha is None else alpha
        phi = torch.zeros(VARIABLES, dtype=torch.float64)
        for _ in range(50):
            gradient, hessian = self._derivatives(phi, alpha)
            if gradient.norm() < 1e-12:
                return phi
            phi = phi - torch.linalg.solve(hessian, gradient)
        raise ArithmeticError(f"Newton's method does not converge on the {self.name} problem")

    def hessian(self) -> Tensor:
        """H at the lower optimum, [n, n]."""
        return self._derivatives(self.solution(), self.alpha)[1]

    def dense(self, inverse: Tensor) -> Tensor:
        """dM/dα with a dense matrix [n, n] in the place of H⁻¹."""
        phi = self.solution()
        jacobian = torch.autograd.functional.jacobian
        gradients = jacobian(self.domain_losses, phi)  # [K, n]
        cross = jacobian(weights, self.alpha).T @ gradients  # [K, n]
        v = jacobian(self.meta_loss, phi)
        return self.direct * self.alpha - cross @ inverse @ v

    def exact(self) -> Tensor:
        """dM/dα."""
        return self.dense(torch.linalg.inv(self.hessian()))

    def parameters(self) -> Tensors:
        """φ* in two tensors, to catch what works for one only."""
        phi = self.solution()
        return [phi[:2].clone(), phi[2:].clone()]

    def run(self, method: str, params: Tensors | None = None, **options: Any) -> Tensor:
        """dM/dα by a method, at φ* in the tensors ``params`` where an optimizer holds them."""
        params = self.parameters() if params is None else params
        (found,) = hypergradient(method, self.upper, self.lower, params, [self.alpha], **options)
        return found

    def _derivatives(self, phi: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        def loss(phi: Tensor) -> Tensor:
            return self.lower([phi], [alpha])

        functional = torch.autograd.functional
        return functional.jacobian(loss, phi), functional.hessian(loss, phi)


def weights(alpha: Tensor) -> Tensor:
    """softplus(α) / mean softplus(α), [K]."""
    return softplus(alpha) / softplus(alpha).mean()


def weighted_ridge(seed: int = 0, direct: float = 0.0) -> Reference:
    """Ridge regression, 20 samples a domain: L_k and M are half mean squared errors."""
    draw = _normal(seed)
    x, y = draw(DOMAINS, 20, VARIABLES), draw(DOMAINS, 20)
    x_meta, y_meta = draw(10, VARIABLES), draw(10)
    return Reference(
        "ridge",
        lambda phi: 0.5 * (x @ phi - y).square().mean(-1),
        lambda phi: 0.5 * (x_meta @ phi - y_meta).square().mean(),
        draw(DOMAINS),
        direct,
    )


def weighted_logistic(seed: int = 0, direct: float = 0.0) -> Reference:
    """Logistic regression, 20 samples a domain, one teacher a domain; M is of another teacher."""
    draw = _normal(seed)
    x, x_meta = draw(DOMAINS, 20, VARIABLES), draw(10, VARIABLES)
    y = (x @ draw(DOMAINS, VARIABLES, 1)).squeeze(-1).sign()
    y_meta = (x_meta @ draw(VARIABLES)).sign()
    return Reference(
        "logistic",
        lambda phi: softplus(-y * (x @ phi)).mean(-1),
        lambda phi: softplus(-y_meta * (x_meta @ phi)).mean(),
        draw(DOMAINS),
        direct,
    )


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖, in float64."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def cosine(found: Tensor, exact: Tensor) -> float:
    """The cosine of the angle between two hypergradients, in float64."""
    product = (found.double() * exact.double()).sum()
    return float(product / (found.double().norm() * exact.double().norm()))


def _normal(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw
