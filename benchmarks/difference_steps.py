"""Rules for the step of finite differences, held against each other near convergence and before.

    python benchmarks/difference_steps.py

Prints JSON lines: for each case the relative error in fp32 of one hypergradient's cross product,
against float64: by forward mode, by differences with each rule, and with the best of many steps.
``entries`` is the product's own rule, and ``apart`` how far its differences with h and with 2h are
from each other; ``absolute`` is h = u^⅓/‖q‖, ``norm`` u^⅓‖φ‖/‖q‖, and ``tensors``
u^⅓ / √(Σ_t ‖q_t‖²/‖φ_t‖²), u half the spacing of numbers near 1.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.functional import layer_norm, softplus
from transformers import Qwen2Config, Qwen2Model

from dreamprm.hypergradients.products import FiniteDifference, ForwardMode
from dreamprm.hypergradients.references import relative_error
from dreamprm.hypergradients.vectors import Tensors, norm, squares

CUBE_ROOT = 2 ** (-24 / 3)  # u^⅓ in fp32
DOMAINS = 3


@dataclass
class Case:
    """A lower and a meta loss of one network: ``losses(φ, meta)`` gives [b] of either set."""

    name: str
    losses: Callable[[Tensors, bool], Tensor]
    lower: Tensors
    decay: float = 0.0

    def loss(self, lower: Tensors, upper: Tensors) -> Tensor:
        """L: domain-weighted losses and weight decay."""
        losses = self.losses(lower, False)
        weights = softplus(upper[0])
        domain = torch.arange(len(losses)) % DOMAINS
        decay = torch.stack([p.square().sum() for p in lower]).sum()
        return ((weights / weights.mean())[domain] * losses).mean() + self.decay * decay

    def train(self, upper: Tensors, steps: int, rate: float) -> None:
        """Adam with a rate that falls to a hundredth."""
        for p in self.lower:
            p.requires_grad_()
        optimizer = torch.optim.Adam(self.lower, lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, max(1, steps))
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(self.lower, upper).backward()
            optimizer.step()
            schedule.step()

    def measure(self, steps: int, rate: float) -> dict[str, object]:
        """The errors after so many steps."""
        upper = [torch.randn(DOMAINS, generator=torch.Generator().manual_seed(0))]
        self.train(upper, steps, rate)
        value = self.losses(self.lower, True).mean()
        grads = torch.autograd.grad(value, self.lower, allow_unused=True, materialize_grads=True)
        phi, q = [p.detach() for p in self.lower], list(grads)
        in_float64 = ([t.double() for t in ts] for ts in (phi, upper, q))
        phi64, upper64, q64 = in_float64
        exact = ForwardMode(self.loss, phi64, upper64).cross(q64)

        def found(step: float) -> Tensor:
            epsilon = step * norm(q)
            product = FiniteDifference(self.loss, phi, upper, epsilon=epsilon, check_every=0)
            return product.cross(q)[0]

        def difference(step: float) -> float:
            return relative_error(found(step), exact[0])

        ours = FiniteDifference(self.loss, phi, upper, check_every=0)
        of_tensors = sum(v / p for v, p in zip(squares(q), squares(phi), strict=True) if p)
        rules = {
            "entries": ours.step(q),
            "absolute": CUBE_ROOT / norm(q),
            "norm": CUBE_ROOT * norm(phi) / norm(q),
            "tensors": CUBE_ROOT / math.sqrt(of_tensors),
        }
        many = [10.0 ** (place / 4) / norm(q) for place in range(-24, 1)]
        return {
            "case": self.name,
            "steps": steps,
            "forward mode": relative_error(
                ForwardMode(self.loss, phi, upper).cross(q)[0], exact[0]
            ),
            **{name: difference(step) for name, step in rules.items()},
            "apart": relative_error(found(2 * ours.step(q)), found(ours.step(q))),
            "best of many": min(map(difference, many)),
        }


def small(seed: int, decay: float) -> Case:
    """tanh(LayerNorm(x W)) V with weight decay, 30 numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sets = [(draw(40, 4), draw(40, 2)), (draw(20, 4), draw(20, 2))]

    def losses(lower: Tensors, meta: bool) -> Tensor:
        x, y = sets[meta]
        hidden = torch.tanh(layer_norm(x.to(lower[0].dtype) @ lower[0], (5,)))
        return (hidden @ lower[1] - y).square().mean(1)

    return Case(f"layer norm, decay {decay:g}", losses, [draw(4, 5), draw(5, 2)], decay)


def qwen2(seed: int, width: int, layers: int, decay: float, lora: bool) -> Case:
    """A score of random words by a Qwen2 of transformers' initialisation."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    backbone = Qwen2Model(config)
    if lora:
        adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
        inject_adapter_in_model(adapters, backbone)
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(width, 1)})
    sets = [(torch.randint(256, (n, 12)), torch.rand(n)) for n in (24, 12)]
    named = dict(model.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad]

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, words: Tensor) -> Tensor:
            hidden = self.model["backbone"](input_ids=words).last_hidden_state
            return self.model["head"](hidden).mean((1, 2))

    scores = Scores()

    def losses(lower: Tensors, meta: bool) -> Tensor:
        words, target = sets[meta]
        given = {name: p.detach().to(lower[0].dtype) for name, p in named.items()}
        given |= dict(zip(trained, lower, strict=True))
        tensors = {f"model.{name}": p for name, p in given.items()}
        return (torch.func.functional_call(scores, tensors, (words,)) - target).square()

    lower = [named[name].detach().clone() for name in trained]
    what = "LoRA on " if lora else ""
    return Case(f"{what}Qwen2 of width {width}, decay {decay:g}", losses, lower, decay)


def rows(quick: bool) -> Iterator[dict[str, object]]:
    """Every case, on two seeds; ``quick`` takes a hundredth of the steps."""
    share = 100 if quick else 1
    for seed in range(1 if quick else 2):
        for decay in (0.001, 0.01, 0.1):
            yield {"seed": seed} | small(seed, decay).measure(3000 // share, 0.01)
        for width, decay, steps in ((16, 1e-3, 600), (16, 1e-2, 600), (64, 1e-2, 600), (64, 0, 0)):
            yield {"seed": seed} | qwen2(seed, width, 2, decay, False).measure(steps // share, 3e-3)
        for steps in (0, 40):
            yield {"seed": seed} | qwen2(seed, 128, 4, 0.0, True).measure(steps // share, 1e-3)


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the training steps")
    for row in rows(parser.parse_args().quick):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
