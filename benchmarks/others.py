"""Hyper-cleaning by other libraries: betty-ml 0.2.1's own engine, and BOAT (boat-torch 1.1.1).

Full batches, the same networks from the same first parameters, the same weights w = 2σ(α) over
their mean, Adam at both levels as in the project's runs.

BOAT pins numpy below 1.27, which no longer goes with current torch; it runs with a newer one:
``pip install --no-deps boat-torch==1.1.1 higher``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.logging.logger_base import get_logger
from betty.problems import ImplicitProblem
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dreamprm.tasks.hyper_cleaning import NETWORKS, NoisyImages
from dreamprm.tasks.hyper_cleaning import Config as Cleaning
from dreamprm.weighting.instances import InstanceTable


class Runnable:
    """A library's run that is set up.

    Attributes:
        network, weights: what is trained.
        cycle: takes ``unroll_steps`` lower steps and an upper one.
    """

    def __init__(self, config: Cleaning, data: NoisyImages) -> None:
        torch.manual_seed(config.seed)
        self.network = NETWORKS[config.network](data.train.image.shape[1])
        self.weights = InstanceTable(len(data.train), "sigmoid")
        self.lower = torch.optim.Adam(self.network.parameters(), lr=config.lower.learning_rate)
        self.upper = torch.optim.Adam(self.weights.parameters(), lr=config.upper.learning_rate)
        index = torch.arange(len(data.train))
        self.train = {"image": data.train.image, "label": data.train.label, "index": index}
        self.meta = {"image": data.validation.image, "label": data.validation.label}
        self.cycle: Callable[[], Any] = lambda: None


class _Lower(ImplicitProblem):
    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The weighted mean of the losses."""
        losses = cross_entropy(self(batch["image"]), batch["label"], reduction="none")
        return (self.upper(batch, losses) * losses).mean()


class _Upper(ImplicitProblem):
    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss on the validation images."""
        return cross_entropy(self.lower(batch["image"]), batch["label"])


def betty(config: Cleaning, data: NoisyImages, type: str, options: Mapping[str, Any]) -> Runnable:
    """betty's own engine and problems.

    Args:
        config: of the run.
        data: of all libraries.
        type: darts, neumann or cg.
        options: of betty's Config.
    """
    get_logger().setLevel(logging.WARNING)  # it prints
    found = Runnable(config, data)
    lower = _Lower(
        "lower",
        Config(type=type, unroll_steps=config.unroll_steps, **options),
        module=found.network,
        optimizer=found.lower,
        train_data_loader=[found.train],
    )
    upper = _Upper(
        "upper",
        Config(),
        module=found.weights,
        optimizer=found.upper,
        train_data_loader=[found.meta],
    )
    links = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    engine = Engine([upper, lower], EngineConfig(strategy="cpu", logger_type="none"), links)
    engine.train()

    def cycle() -> None:
        for _ in range(config.unroll_steps):
            engine.global_step += 1
            engine.train_step()

    found.cycle = cycle
    return found


def lower_loss(
    batch: dict[str, Tensor], weights: nn.Module, network: nn.Module, params: Any = None
) -> Tensor:
    """The weighted mean of the losses, as BOAT calls it."""
    logits = network(batch["image"], **({} if params is None else {"params": params}))
    losses = cross_entropy(logits, batch["label"], reduction="none")
    return (weights(batch, losses) * losses).mean()


def upper_loss(
    batch: dict[str, Tensor], weights: nn.Module, network: nn.Module, params: Any = None
) -> Tensor:
    """The mean loss on the validation images, as BOAT calls it."""
    logits = network(batch["image"], **({} if params is None else {"params": params}))
    return cross_entropy(logits, batch["label"])


def boat(
    config: Cleaning, data: NoisyImages, operation: str, options: Mapping[str, Any]
) -> Runnable:
    """BOAT's naive gradient descent below, and one of its operations for the hypergradient.

    Args:
        config: of the run.
        data: of all libraries.
        operation: RAD (through all lower steps), CG or NS.
        options: ``k``, ``tolerance`` of CG and NS; ``sgd``, the learning rate of lower SGD in the
            place of Adam, whose state BOAT starts anew after every upper step.

    Raises:
        ImportError: it is not installed.
    """
    from boat_torch import Problem

    found = Runnable(config, data)
    if "sgd" in options:
        found.lower = torch.optim.SGD(found.network.parameters(), lr=options["sgd"])
    settings = {
        "fo_op": None,
        "gm_op": ["NGD"],
        "na_op": [operation],
        "lower_level_model": found.network,
        "upper_level_model": found.weights,
        "lower_level_var": list(found.network.parameters()),
        "upper_level_var": list(found.weights.parameters()),
        "lower_level_opt": found.lower,
        "upper_level_opt": found.upper,
        "lower_iters": config.unroll_steps,
        "device": "cpu",
        "accumulate_grad": False,
        "copy_last_param": True,
        "return_grad": False,
        "loss_log_path": os.devnull,
        "GDA": {"alpha_init": 0.0, "alpha_decay": 1.0},
        "RGT": {"truncate_iter": 0},
        "CG": {"k": options.get("k", 5), "tolerance": options.get("tolerance", 1e-10)},
    }
    losses = {
        f"{level}_level_loss": {"function": f"{__name__}.{level}_loss"}
        for level in ("lower", "upper")
    }
    problem = Problem(settings, losses)
    problem.build_ll_solver()
    problem.build_ul_solver()
    found.cycle = lambda: problem.run_iter(found.train, found.meta, 0)
    return found
