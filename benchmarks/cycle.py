"""What one bi-level cycle costs: over plain fine-tuning, and over the published layout.

    python benchmarks/cycle.py plain published

``plain``: T lower steps and one upper step over T lower steps on the same batches, with meta and
hypergradient batches as large as the lower one or smaller. ``published``: every prefix of a
solution a forward pass of its own, vocabulary logits at all positions, one solution a batch, and a
finite difference whose two evaluations keep their graphs, per labelled step; and the lower level
of both alone; and how far the logits of the two are apart for the same weights. Prints JSON lines.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from measuring import (
    Setting,
    Shape,
    forget,
    matrix_rate,
    parser,
    ratio,
    seconds,
    setting,
    show,
)
from torch import Tensor, nn

from dreamprm.hypergradients.cost import operations
from dreamprm.models.reward_model import ProcessRewardModel

T = 5


def plain(where: Setting, shape: Shape, repeats: int) -> Iterator[dict[str, Any]]:
    """Each method over plain fine-tuning."""
    half, quarter = shape.batch // 2, max(1, shape.batch // 4)
    runs = {
        "plain": (None, None, 0),
        "forward": ("t1t2", None, 0),
        "finite_difference": ("identity+finite_difference", None, 0),
        "forward, half": ("t1t2", max(2, half), half),
        "finite_difference, half": ("identity+finite_difference", max(2, half), half),
        "forward, meta half, hypergradient a quarter": ("t1t2", max(2, half), quarter),
    }
    cycles = {
        name: where.run(shape, method, meta, part, T) for name, (method, meta, part) in runs.items()
    }
    times = seconds(cycles, repeats, where.device)
    counted = {name: operations(cycle) for name, cycle in cycles.items()}
    rate = matrix_rate(where.device)
    tokens = T * shape.batch * (shape.prompt + shape.steps * shape.step_tokens)
    for name in runs:
        middle = statistics.median(times[name])
        yield {
            "benchmark": "cycle",
            "of": name,
            "over plain": ratio(times, name, "plain"),
            "operations over plain": round(counted[name] / counted["plain"], 3),
            "lower tokens a second": round(tokens / middle),
            "share of the matrix rate": round(counted[name] / middle / rate, 3),
            **asdict(shape),
        }


def published(where: Setting, shape: Shape, repeats: int) -> Iterator[dict[str, Any]]:
    """The published layout over this one, by steps a solution."""
    for steps in (5, 10):
        ours = replace(shape, steps=steps)
        model = Published(where)
        one = where.batch(replace(ours, batch=1))
        batch, trained = where.batch(ours), where.model()

        def train_ours(batch: Any = batch, trained: nn.Module = trained) -> None:
            trained(batch).square().mean().backward()
            trained.zero_grad()

        passes = {
            "ours": train_ours,
            "published": lambda model=model, one=one: model.train_on(one),
            "our cycle, forward": where.run(ours, "t1t2", unroll_steps=T),
            "our cycle, finite difference": where.run(
                ours, "identity+finite_difference", unroll_steps=T
            ),
            "published cycle": lambda model=model, one=one: model.cycle(one),
        }
        apart = (model.scores(one) - model.in_one_pass(one)).abs().max().item()
        times = seconds(passes, repeats, where.device)
        for name in ("ours", "our cycle, forward", "our cycle, finite difference"):
            yield {
                "benchmark": "published",
                "of": "published cycle" if "cycle" in name else "published",
                "over": name,
                # The published layout takes one solution where this one takes a batch of them.
                "times faster": ratio(
                    times, "published cycle" if "cycle" in name else "published", name, ours.batch
                ),
                "logits apart": apart,
                **asdict(ours),
            }


class Published(nn.Module):
    """The published code's way: a linear map of the vocabulary logits at a prefix's last token."""

    def __init__(self, where: Setting) -> None:
        super().__init__()
        ours = where.model()
        self.backbone, self.tokenizer = ours.backbone, ours.tokenizer
        self.where = where
        width = self.backbone.config.get_text_config().hidden_size
        with torch.device(where.device):
            self.head = nn.Linear(width, where.vocabulary, bias=False)
            self.read = nn.Linear(where.vocabulary, 1)
            self.alpha = nn.Parameter(torch.ones(15))
        self.phi = [p for name, p in self.named_parameters() if name != "alpha"]
        self.optimizer = torch.optim.AdamW(self.phi, lr=1e-7)

    def scores(self, one: dict[str, Any]) -> Tensor:
        """Logits of the steps of one solution; all graphs are held."""
        found = []
        with torch.autocast(
            self.where.device, torch.bfloat16, enabled=self.where.precision == "bf16"
        ):
            for end in one["step_positions"][0].tolist():
                inputs = {
                    name: value[:, : end + 1]
                    if name in ("input_ids", "attention_mask", "mm_token_type_ids")
                    else value
                    for name, value in one["inputs"].items()
                }
                hidden = self.backbone(**inputs, use_cache=False).last_hidden_state
                found.append(self.read(self.head(hidden)[:, -1]).squeeze())
        return torch.stack(found).float()

    @torch.no_grad()
    def in_one_pass(self, one: dict[str, Any]) -> Tensor:
        """The same by dreamprm's model with the same weights: here the layouts are equal."""
        model = ProcessRewardModel(
            self.backbone, self.tokenizer, readout="vocabulary", head=self.head
        ).to(self.where.device)
        model.readout.load_state_dict(self.read.state_dict())
        with torch.autocast(
            self.where.device, torch.bfloat16, enabled=self.where.precision == "bf16"
        ):
            return model(one)[0].float()

    def loss(self, one: dict[str, Any]) -> Tensor:
        """Of one solution, by its domain's weight."""
        losses = (self.scores(one).sigmoid() - one["step_labels"][0]).square()
        return self.alpha[one["domain"][0]] * losses.mean()

    def train_on(self, one: dict[str, Any]) -> None:
        """Forward and backward."""
        for p, g in zip(self.phi, torch.autograd.grad(self.loss(one), self.phi), strict=True):
            p.grad = g
        for p in self.phi:
            p.grad = None

    @torch.no_grad()
    def _move(self, vector: list[Tensor], by: Tensor | float) -> None:
        for p, v in zip(self.phi, vector, strict=True):
            p.add_(v * by)

    def cycle(self, one: dict[str, Any]) -> None:
        """T steps, the meta gradient, and the difference of two graph-keeping evaluations."""
        for _ in range(T):
            grads = torch.autograd.grad(self.loss(one), self.phi)
            for p, g in zip(self.phi, grads, strict=True):
                p.grad = g
            self.optimizer.step()
            self.optimizer.zero_grad()
        meta = (self.scores(one).mean().sigmoid() - one["outcome"][0]).square()
        vector = torch.autograd.grad(meta, self.phi)
        step = 0.01 / torch.stack([v.norm() for v in vector]).norm()
        self._move(vector, step)
        torch.autograd.grad(self.loss(one), self.alpha)
        self._move(vector, -2 * step)
        torch.autograd.grad(self.loss(one), self.alpha)
        self._move(vector, step)


def main() -> None:
    """Prints what was asked for."""
    options = parser(__doc__.splitlines()[0], repeats=7)
    options.add_argument("sections", nargs="*", default=("plain", "published"))
    options.add_argument("--batch", type=int, default=4, help="solutions")
    found = options.parse_args()
    if unknown := set(found.sections) - {"plain", "published"}:
        options.error(f"no such section: {', '.join(sorted(unknown))}")
    where, shape = setting(found), Shape(batch=found.batch)
    if "plain" in found.sections:
        show(plain(where, shape, found.repeats))
        forget()
    if "published" in found.sections:
        show(published(where, shape, found.repeats))


if __name__ == "__main__":
    main()
