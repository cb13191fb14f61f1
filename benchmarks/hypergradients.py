"""How exact, how robust and how costly hypergradients are: the tables of docs/hypergradients.md.

    python benchmarks/hypergradients.py exactness precision memory cost

Prints JSON lines. ``exactness``: relative errors in float64 on ridge regression of 6 variables and
3 domains at the lower optimum, betty-ml's conjugate gradient beside ours. ``precision``: of one
domain hypergradient of the demo's reward model, by arithmetic. ``memory``: how far whole runs end
from the optimum of quadratics, by methods that go on from their last q and others. ``cost``: in
forward passes, timed side by side and counted, of a Qwen2 model with realistic proportions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from betty.hypergradient.cg import cg as betty_cg
from peft import LoraConfig, get_peft_model
from quadratics import memory
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import Qwen2Config, Qwen2Model

from dreamprm.engines.comparison import case_of
from dreamprm.hypergradients import Method, Point, resolve
from dreamprm.hypergradients.comparison import Case, hypergradient_at
from dreamprm.hypergradients.cost import operations, peak_bytes
from dreamprm.hypergradients.functional import evaluate
from dreamprm.hypergradients.products import FiniteDifference, ForwardMode
from dreamprm.hypergradients.references import VARIABLES, Reference, relative_error, weighted_ridge
from dreamprm.models.tiny import initialise
from dreamprm.tasks.prm.comparison import DROPOUT, demo_briefly, with_dropout

DARTS_STEP = 0.01


def exactness() -> Iterator[dict[str, Any]]:
    """Every method against the dense answer that it should give."""
    ridge = weighted_ridge()
    eye = torch.eye(VARIABLES, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(ridge.hessian())
    alpha = 1 / float(eigenvalues[-1])
    terms = int(-23 / torch.log1p(-eigenvalues[0] * alpha)) + 1  # for an error of exp(−23)
    adam = torch.optim.Adam(params := ridge.parameters(), lr=0.05)
    for p in params:
        adam.state[p] = {"step": torch.tensor(1.0), "exp_avg": p * 0, "exp_avg_sq": p * 0 + 4.0}
    root = (0.999 * 4 / (1 - 0.999**2)) ** 0.5 + 1e-8
    preconditioner = 0.05 * 0.1 / (1 - 0.9**2) / root * eye
    inverse = torch.linalg.inv(ridge.hessian())
    cases: list[tuple[str, dict[str, Any], Tensor]] = [
        ("cg", {"iterations": VARIABLES}, inverse),
        ("neumann", {"iterations": terms, "alpha": alpha}, inverse),
        ("nystrom", {"rank": VARIABLES, "damping": 1e-8}, inverse),
        ("t1t2", {}, eye),
        ("darts", {}, eye),
    ]
    for name, options, expected in cases:
        error = relative_error(ridge.run(name, **options), ridge.dense(expected))
        yield {"method": name, **options, "relative_error": error}
    for product in ("forward", "finite_difference"):
        found = ridge.run(f"sama+{product}", params=params, optimizer=adam)
        error = relative_error(found, ridge.dense(preconditioner))
        yield {"method": f"sama+{product}", "relative_error": error}
    for iterations in (VARIABLES, 20):
        error = relative_error(_by_betty(ridge, iterations), ridge.exact())
        yield {"method": "betty-ml 0.2.1 cg", "iterations": iterations, "relative_error": error}


def _by_betty(reference: Reference, iterations: int) -> Tensor:
    """betty's own function, with the little that it asks of its problems."""
    phi = reference.solution().requires_grad_()
    alpha = reference.alpha.clone().requires_grad_()
    (v,) = torch.autograd.grad(reference.upper([phi], [alpha]), phi)
    lower = SimpleNamespace(
        paths=[],
        config=SimpleNamespace(cg_iterations=iterations, cg_alpha=1.0),
        cur_batch=None,
        training_step_exec=lambda batch: reference.lower([phi], [alpha]),
        trainable_parameters=lambda: [phi],
        parameters=lambda: [phi],
    )
    upper = SimpleNamespace(trainable_parameters=lambda: [alpha])
    (found,) = betty_cg([v], lower, upper, sync=False)
    return found


def precision() -> Iterator[dict[str, Any]]:
    """Relative errors of the identity solver's hypergradient, by model, arithmetic and product."""
    with demo_briefly("precision") as engine:

        def demo(dropout: float = 0.0, **arithmetic: Any) -> Case:
            if dropout:
                return with_dropout(engine, "prm", dropout, **arithmetic)
            return case_of(engine, "prm", **arithmetic)

        models: dict[str, Callable[..., Case]] = {
            "demo PRM, fp32 readout": demo,
            "Qwen2 of 3.4 M": language_model_case,
        }
        for model, case in models.items():
            for name, arithmetic in {
                "fp32": {},
                "fp32 parameters, bf16 autocast": {"autocast": True},
                "bf16 parameters": {"dtype": torch.bfloat16},
                f"fp32, dropout {DROPOUT}, one mask": {"dropout": DROPOUT},
            }.items():
                each = case(**arithmetic)
                yield {
                    "model": model,
                    "arithmetic": name,
                    "finite difference, epsilon 0.01": _error("darts", each, epsilon=DARTS_STEP),
                    "finite difference, epsilon by precision": _error("darts", each),
                    "forward mode": _error("t1t2", each),
                }
            yield {"model": model} | _two_masks(case(dropout=DROPOUT))
            yield {"model": model} | _perturbed_in_place(case(dtype=torch.bfloat16))


def language_model_case(
    dtype: torch.dtype = torch.float32, autocast: bool = False, dropout: float = 0.0
) -> Case:
    """A Qwen2 model with a linear readout in the model's own arithmetic, on random tokens."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    backbone = Qwen2Model(
        Qwen2Config(
            vocab_size=2000,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_dropout=dropout,
            use_cache=False,
        )
    )
    model = nn.ModuleDict({"backbone": backbone, "readout": nn.Linear(256, 1)})
    initialise(model, seed=0)
    ids, meta_ids = (torch.randint(0, 2000, (16, 64), generator=generator) for _ in range(2))
    labels = torch.rand(16, 4, generator=generator)
    outcome = torch.rand(16, generator=generator).round()
    domain = torch.arange(16) % 4

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            hidden = model["backbone"](ids, use_cache=False).last_hidden_state
            return model["readout"](hidden[:, 15::16]).squeeze(-1)

    scores = Scores()
    names = [name for name, _ in scores.named_parameters()]

    def logits(lower: list[Tensor], ids: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=autocast):
            found = torch.func.functional_call(scores, dict(zip(names, lower, strict=True)), (ids,))
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def lower_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        found = logits(lower, ids)
        losses = (found.sigmoid() - labels.to(found.dtype)).square().mean(1)
        weights = softplus(upper[0])
        return ((weights / weights.mean())[domain] * losses).mean()

    def upper_loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        found = logits(lower, meta_ids)
        return (found.mean(1).sigmoid() - outcome.to(found.dtype)).square().mean()

    def exact(method: Method, options: Mapping[str, Any]) -> Tensor:
        assert method.name in ("darts", "t1t2")
        return hypergradient_at(
            resolve("t1t2"), language_model_case(torch.float64, False, dropout), {}
        )

    lower = [p.detach().to(dtype) for p in scores.parameters()]
    upper = [torch.zeros(4, dtype=torch.promote_types(dtype, torch.float32))]
    return Case("qwen2", lower_loss, upper_loss, lower, upper, torch.optim.SGD(lower), exact)


def _error(name: str, case: Case, **options: Any) -> float:
    method = resolve(name)
    return relative_error(hypergradient_at(method, case, options), case.exact(method, options))


def _two_masks(case: Case) -> dict[str, Any]:
    """What two evaluations with a dropout mask each give, as betty takes them."""
    method = resolve("darts")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        point, vector = _point(case)
        product = FiniteDifference(case.lower_loss, point.lower, point.upper, epsilon=DARTS_STEP)
        found = torch.cat([-g.reshape(-1) for g in product.cross(vector)])
    return {
        "arithmetic": f"fp32, dropout {DROPOUT}, two masks",
        "finite difference, epsilon 0.01": relative_error(found, case.exact(method, {})),
    }


def _perturbed_in_place(case: Case) -> dict[str, Any]:
    """How far parameters are from where they were after +ε, −2ε, +ε along v."""
    _, vector = _point(case)
    step = float(DARTS_STEP / torch.cat([v.float().reshape(-1) for v in vector]).norm())
    drift = 0.0
    for p, v in zip(case.lower, vector, strict=True):
        moved = p.clone()
        for factor in (1, -2, 1):
            moved.add_(v, alpha=factor * step)
        drift = max(drift, float((moved - p).abs().max()))
    return {"arithmetic": "bf16 parameters, perturbed in place", "largest drift": drift}


def _point(case: Case) -> tuple[Point, list[Tensor]]:
    arguments = (case.upper_loss, case.lower_loss, case.lower, case.upper, case.optimizer, {})
    point, _, vector = evaluate(resolve("darts"), *arguments)
    return point, vector


def cost(
    width: int, layers: int, batch: int, tokens: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Forward passes that each product takes, with all parameters trained and with LoRA."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2000,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        use_cache=False,
    )
    ids = torch.randint(0, 2000, (batch, tokens))
    read = torch.randn(width)
    for trained in ("all", "lora"):
        model: nn.Module = Qwen2Model(config)
        if trained == "lora":
            model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(p, std=0.02)
        yield _products(model, ids, read, repeats) | {"trained": trained}


def _products(model: nn.Module, ids: Tensor, read: Tensor, repeats: int) -> dict[str, Any]:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    lower = [p.detach() for p in model.parameters() if p.requires_grad]
    upper = [torch.zeros(len(ids))]
    vector = [torch.randn_like(p) for p in lower]
    model.requires_grad_(False)

    def loss(lower: list[Tensor], upper: list[Tensor]) -> Tensor:
        """Scores at every sixteenth token; a domain for each sequence."""
        called = torch.func.functional_call(
            model, dict(zip(names, lower, strict=True)), (ids,), {"use_cache": False}
        )
        scores = (called.last_hidden_state[:, ::16] @ read).sigmoid()
        return (softplus(upper[0]) * (scores - 0.3).square().mean(1)).sum()

    def forward() -> None:
        with torch.no_grad():
            loss(lower, upper)

    def train() -> None:
        leaves = [p.detach().requires_grad_() for p in lower]
        torch.autograd.grad(loss(leaves, upper), leaves)

    passes: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "training": train,
        "finite_difference": lambda: FiniteDifference(loss, lower, upper).cross(vector),
        "forward_mode": lambda: ForwardMode(loss, lower, upper).cross(vector),
    }
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats + 1):
        for name, function in passes.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    unit = operations(forward)
    result: dict[str, Any] = {"parameters": sum(p.numel() for p in lower)}
    for name, function in passes.items():
        # Each against the forward pass of its own round; the first round warms up.
        ratios = [t / f for t, f in zip(times[name][1:], times["forward"][1:], strict=True)]
        result[name] = {
            "forwards, timed": round(statistics.median(ratios), 2),
            "forwards, counted": round(operations(function) / unit, 2),
            "peak MB, counted": round(peak_bytes(function) / 1e6, 1),
        }
    return result


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ("exactness", "precision", "memory", "cost")
    parser.add_argument("sections", nargs="*", metavar="|".join(sections), default=sections)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--tokens", type=int, default=256, help="in a sequence")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    if unknown := set(options.sections) - set(sections):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    sizes = (options.width, options.layers, options.batch, options.tokens, options.repeats)
    makers: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "exactness": exactness,
        "precision": precision,
        "memory": memory,
        "cost": lambda: cost(*sizes),
    }
    warnings.simplefilter("ignore")  # the methods' own, of what is shown here
    for section in options.sections:
        for row in makers[section]():
            print(json.dumps({"section": section} | row), flush=True)


if __name__ == "__main__":
    main()
