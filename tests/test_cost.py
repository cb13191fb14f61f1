"""Counted costs against what is known beforehand."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from dreamprm.hypergradients.cost import operations, peak_bytes


def test_bytes_alive_at_once() -> None:
    before = torch.zeros(1000)

    def two_at_a_time() -> None:
        x = before.view(10, 100)  # not new
        for _ in range(5):
            x = x + 1  # the old one lives until the new one is there

    assert peak_bytes(two_at_a_time) == 2 * 4000

    def with_a_graph() -> None:
        x = before.detach().requires_grad_()
        for _ in range(5):
            x = x.exp()  # kept for the backward pass
        x.sum().backward()

    # Five results and, walking back, a gradient and the next one, of which x.grad is the last.
    peak = peak_bytes(with_a_graph) / 4000
    assert 5 < peak < 8


def test_operations_of_products_and_attention() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert operations(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.zeros(2, 4, 6, 8)  # attention: QKᵀ and its product with V
    assert operations(lambda: scaled_dot_product_attention(q, q, q)) == 2 * 2 * 8 * 6 * 6 * 8
