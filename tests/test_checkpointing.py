"""Gradient checkpointing changes no number, whatever takes derivatives and at which parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dreamprm.errors import UserError
from dreamprm.hypergradients import hypergradient
from dreamprm.hypergradients.cost import peak_bytes
from dreamprm.models.checkpointing import enable_checkpointing
from dreamprm.models.tiny import tiny_backbone, tiny_tokenizer
from tests.test_recomputation import METHODS

WIDTH, MARKERS = 32, slice(3, None, 4)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Scores(nn.Module):
    """A Qwen2 model read at every fourth token; its attention has dropout."""

    def __init__(self, checkpointed: bool | str, layers: int = 2) -> None:
        super().__init__()
        tokenizer = tiny_tokenizer(["a b"], 300, "<|step|>")
        self.backbone: Any = tiny_backbone("tiny-qwen2", tokenizer, WIDTH, layers, 4, 0, 0)
        for module in self.backbone.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.2
        self.read = torch.linspace(-1, 1, WIDTH)
        if checkpointed == "theirs":
            self.backbone.gradient_checkpointing_enable()
        elif checkpointed:
            enable_checkpointing(self.backbone)
        self.train()

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.backbone(ids, use_cache=False).last_hidden_state
        return hidden[:, MARKERS] @ self.read


def answer(method: str, checkpointed: bool | str, **options: Any) -> Tensor:
    torch.manual_seed(0)
    scores = Scores(checkpointed)
    ids, meta_ids = torch.randint(0, 250, (2, 4, 12))
    # Not where the module is: an answer at its own parameters would be another.
    phi = {n: (p.detach() * 1.1).requires_grad_() for n, p in scores.named_parameters()}

    def read(phi: dict[str, Tensor], ids: Tensor) -> Tensor:
        return torch.func.functional_call(scores, phi, (ids,)).sigmoid()

    def lower(phi: dict[str, Tensor], alpha: list[Tensor]) -> Tensor:
        return (softplus(alpha[0]) * (read(phi, ids) - 0.3).square().mean(1)).sum()

    def upper(phi: dict[str, Tensor], alpha: list[Tensor]) -> Tensor:
        return (read(phi, meta_ids).mean(1) - 1).square().sum()

    alpha = [torch.tensor([0.0, 0.5, -0.5, 1.0])]
    if method.startswith(("unrolled", "sama")):
        options |= {"optimizer": torch.optim.SGD(list(phi.values()), lr=0.1)}
    (found,) = hypergradient(method, upper, lower, phi, alpha, **options)
    return found


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *METHODS,
        ("identity+double_backward", {}),
        ("unrolled+finite_difference", {"iterations": 2}),
    ],
)
def test_no_method_sees_the_checkpoints(method: str, options: dict[str, Any]) -> None:
    expected = answer(method, False, **options)
    found = answer(method, True, **options)
    # The same operations: nothing but the order of sums may differ.
    assert (found - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("method", ["darts", "neumann+forward", "neumann+double_backward"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_no_method_sees_hugging_faces_own(method: str) -> None:
    expected = answer(method, False)
    found = answer(method, "theirs")
    assert (found - expected).norm() < 1e-9 * expected.norm()


def test_it_saves_what_it_is_for() -> None:
    ids = torch.randint(0, 250, (4, 48))

    def peak(checkpointed: bool) -> int:
        scores = Scores(checkpointed, layers=6)
        return peak_bytes(lambda: torch.autograd.grad(scores(ids).sum(), [*scores.parameters()]))

    assert peak(True) < 0.6 * peak(False)


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(UserError, match="Linear does not support gradient checkpointing"):
        enable_checkpointing(nn.Linear(2, 2))
