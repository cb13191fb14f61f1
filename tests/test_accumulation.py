"""Gradient accumulation at both levels: a step of k micro-batches is a step of one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.micro_batches import mean_stats
from tests.toy import Regression, Weighting, toy


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Keeping(Weighting):
    """Keeps its gradients."""

    def grad_callback(self) -> None:
        self.kept = [*getattr(self, "kept", []), self.module.alpha.grad.clone()]


def run(micro_batches: int, method: str = "t1t2", **problem: Any) -> ReweightingEngine:
    """Four steps of 16, clipped and decaying, and two steps of the upper problem of 16."""
    torch.manual_seed(0)  # of the module
    engine = toy(
        steps=4,
        method=method,
        upper=Keeping,
        module=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        scheduler=lambda o: ExponentialLR(o, 0.5),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        problem={
            "gradient_accumulation": micro_batches,
            "gradient_clipping": 0.1,
            "options": {"iterations": 2} if method in ("cg", "neumann", "f2sa") else {},
            **problem,
        },
        upper_problem={"gradient_accumulation": micro_batches},
        batch_sizes=(16 // micro_batches, 16 // micro_batches),
    )
    engine.run()
    return engine


@pytest.mark.parametrize("method", ["t1t2", "darts", "cg", "neumann", "sama", "f2sa", "unrolled"])
def test_micro_batches_are_one_batch(method: str) -> None:
    whole, parts = run(1, method), run(4, method)
    assert [p.count for p in parts.problems] == [p.count for p in whole.problems] == [2, 4]
    assert parts.lower.scheduler.last_epoch == 4
    for a, b in zip(whole.problems, parts.problems, strict=True):
        for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True):
            # The same sums in another order; f2sa multiplies rounding by λ = 10, darts by 1/ε.
            assert torch.allclose(p, q, rtol=1e-8, atol=1e-10)
    for found, expected in zip(parts.upper.kept, whole.upper.kept, strict=True):
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", ["t1t2", "darts", "unrolled"])
def test_micro_batches_of_other_sizes_are_one_batch(method: str) -> None:
    """As batches that are filled by tokens are."""

    class Sized(Regression):
        def size_of(self, batch: Any) -> int:
            return len(batch["y"])

    class Uneven(Sized):
        def get_batch(self) -> Any:
            if not getattr(self, "rest", None):
                batch = super().get_batch()
                self.rest = [{k: v[a:b] for k, v in batch.items()} for a, b in ((2, 16), (0, 2))]
            return self.rest.pop()

    kept = []
    for lower, micro_batches in ((Sized, 1), (Uneven, 2)):
        torch.manual_seed(0)
        engine = toy(
            steps=4,
            method=method,
            lower=lower,
            upper=Keeping,
            problem={"gradient_accumulation": micro_batches},
            optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        )
        engine.run()
        kept.append([*engine.upper.kept, *(p.detach() for p in engine.lower.module.parameters())])
    for found, expected in zip(*kept, strict=True):
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-10)


def test_logged_numbers_are_means_over_the_micro_batches() -> None:
    losses: list[list[float]] = []

    class Watching(Regression):
        def log(self, stats: dict[str, Any], global_step: int | None) -> None:
            losses[-1].append(stats["loss"])

    for micro_batches in (1, 4):
        losses.append([])
        toy(
            steps=3,
            lower=Watching,
            problem={"gradient_accumulation": micro_batches},
            batch_sizes=(16 // micro_batches, 16),
        ).run()
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_numbers_of_micro_batches_count_by_their_shares() -> None:
    stats = [{"loss": 1.0, "note": "a"}, {"loss": torch.tensor(3.0), "note": "b"}]
    assert mean_stats(stats, [0.25, 0.75]) == {"loss": 2.5, "note": "b"}


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_smaller_hypergradient_batch_is_the_first_items_of_the_last_step(
    micro_batches: int,
) -> None:
    found = run(micro_batches, hypergradient_batch_size=4).upper.kept[0]
    engine = run(1)
    assert not torch.allclose(found, engine.upper.kept[0], rtol=1e-3)

    class OnTheFirst(Keeping):
        def _through(self, path: Any, vector: Any) -> Any:
            lower = path[1]
            lower.batches = [{key: value[:4] for key, value in lower.batches[0].items()}]
            return super()._through(path, vector)

    torch.manual_seed(0)
    engine = toy(
        steps=2,
        upper=OnTheFirst,
        module=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        scheduler=lambda o: ExponentialLR(o, 0.5),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        problem={"gradient_clipping": 0.1},
    )
    engine.run()
    assert torch.allclose(found, engine.upper.kept[0], rtol=1e-9)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="gradient_accumulation is 0"):
        ProblemConfig(gradient_accumulation=0)
    with pytest.raises(UserError, match="hypergradient_batch_size is -1"):
        ProblemConfig(hypergradient_batch_size=-1)
    with pytest.raises(UserError, match="hypergradient_batch_size is not for it"):
        ProblemConfig(type="unrolled", hypergradient_batch_size=4)
    engine = toy(steps=2, problem={"hypergradient_batch_size": 4})
    batches = engine.lower.get_batch
    engine.lower.train_data_loader = [[batches()] * 2]
    with pytest.raises(UserError, match=r"needs a loader with recent\(\)"):
        engine.run()
