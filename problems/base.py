"""Our Problem on betty's: this project's hypergradients, and the defects of betty-ml 0.2.1 met.

Each remedy names the defect that it answers and has a test in tests/test_problems_base.py that
fails without it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from betty.problems import ImplicitProblem
from torch import Tensor, nn

from dreamprm.data.batches import to_device
from dreamprm.errors import UserError
from dreamprm.hypergradients import Point, indirect_gradient, resolve
from dreamprm.hypergradients.checkpointing import refusing_reentrant
from dreamprm.hypergradients.interface import OPTIMIZER, STEPS, Loss
from dreamprm.hypergradients.precision import Precision
from dreamprm.hypergradients.randomness import RandomState
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.decay import say_decay
from dreamprm.problems.fidelity import fidelity, is_due
from dreamprm.problems.finite import check_gradient, check_parameters, check_vector, naming
from dreamprm.problems.history import LowerHistory, next_step
from dreamprm.problems.micro_batches import hypergradient_batches, mean_stats, numbers
from dreamprm.problems.optimizers import check_optimizer
from dreamprm.problems.stateless import StatelessLoss
from dreamprm.weighting.row_parameters import holding, rows_of, spread


class Problem(ImplicitProblem):
    """An optimisation problem of a multilevel program; subclasses say ``training_step(batch)``.

    Module, optimizer, scheduler and data loader come by the constructor or from betty's
    ``configure_module`` and its sisters. A problem reaches the others by their names, as
    attributes.

    Args:
        name: how the other problems and the logs call it.
        config: a :class:`ProblemConfig`.
        module, optimizer, scheduler, train_data_loader: as in torch.

    Raises:
        UserError: the config is betty's own, whose hypergradient options would be ignored here.
    """

    config: ProblemConfig

    def __init__(self, name: str, config: ProblemConfig | None = None, **parts: Any) -> None:
        config = config if config is not None else ProblemConfig()
        if not isinstance(config, ProblemConfig):
            raise UserError(
                f"problem {name!r} got a {type(config).__module__}.{type(config).__name__}, "
                "expected a dreamprm.problems.ProblemConfig"
            )
        super().__init__(name, config, **parts)
        self.stats: dict[str, float] = {}
        self.gas = 1  # betty's count of micro-batches; see one_step_descent
        self.batches: list[Any] = []  # the micro-batches of the last step
        self._method = resolve(config.type)
        self._bits: int | None = None
        self._memory: dict[str, Any] = {}  # of the hypergradient method; see Point
        self._decay_said = False
        self._history = LowerHistory(config.options.get("iterations"))

    # --- betty's defects -------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained; betty's returns frozen ones too."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def patch_optimizer(self) -> None:
        """Keeps the optimizer; betty rebuilds it from ``defaults``.

        That loses parameter groups, and fails for AdamW. The device move of ``patch_module``
        keeps every Parameter object, so there is nothing to rebuild.
        """
        check_optimizer(self)

    def patch_scheduler(self) -> None:
        """Keeps the scheduler; betty rebuilds it from its attributes.

        That fails for SequentialLR and OneCycleLR.
        """

    def training_step_exec(self, batch: Any) -> Any:
        """``training_step`` under autocast of the device in use; betty's is hard-wired to CUDA."""
        with torch.autocast(
            torch.device(self.device).type, self.dtype, enabled=self.precision != "fp32"
        ):
            return self.training_step(batch)

    def get_batch_single_loader(self, idx: int) -> Any:
        """The next batch, on the device however nested; betty moves the first level only."""
        try:
            batch = next(self.train_data_iterator[idx])
        except StopIteration:
            if idx == 0:
                self.epoch_callback_exec()
            self.epoch_counter[idx] += 1
            self.train_data_iterator[idx] = iter(self.train_data_loader[idx])
            batch = next(self.train_data_iterator[idx])
        return to_device(batch, self.device)

    def log(self, stats: dict[str, Any], global_step: int | None) -> None:
        """Keeps the single numbers of the step for the Engine; betty prints all that is there."""
        self.stats = {name: float(stats[name]) for name in numbers(stats)}

    def one_step_descent(self, batch: Any | None = None) -> dict[str, Any]:
        """One step of the optimizer, over all of its micro-batches; betty takes each for a step.

        It then steps the scheduler, calls ``grad_callback`` and counts a step at every one of
        them, and an upper problem accumulates over lower parameters that move in between. Here
        the loss of a step is the mean of those of its micro-batches, by their sizes, and so is the
        v of its hypergradient: one for all of them.

        Args:
            batch: betty's last one to take its step again; None for new ones.

        Raises:
            FloatingPointError: a loss, a gradient or a parameter is not finite; see
                ``dreamprm.problems.finite``.
        """
        if batch is None:
            self.batches = [self.get_batch() for _ in range(self.config.gradient_accumulation)]
            self.cur_batch = self.batches[-1]
        parameters = self.trainable_parameters()
        if self._parents and STEPS in self._method.needs:
            self._history.before_loss(self)
        stats, vectors = [], None
        shares = self.shares(self.batches)
        for i, (each, share) in enumerate(zip(self.batches, shares, strict=True)):
            with naming(self, batch=i):
                loss, found = self.get_loss(each)
            stats.append(found)
            with refusing_reentrant():
                vectors = self._backward(loss * share, parameters, vectors)
        for path, vector in zip(self._paths, vectors or (), strict=True):
            check_vector(self, path[1], vector)
            self.set_grads(parameters, self._through(path, vector))
        if self.is_implemented("grad_callback"):
            self.grad_callback()
        check_gradient(self)
        self.optimizer_step()
        if self.is_implemented("param_callback"):
            self.param_callback()
        check_parameters(self)
        self.zero_grad()
        return mean_stats(stats, shares)

    def size_of(self, batch: Any) -> int:
        """What a batch counts beside the other micro-batches of a step; for subclasses."""
        return 1

    def shares(self, batches: Sequence[Any]) -> list[float]:
        """What each of several micro-batches counts; 1 in sum."""
        sizes = [self.size_of(batch) for batch in batches]
        return [size / sum(sizes) for size in sizes]

    def get_loss(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """As betty's, and stops at a loss that is not finite instead of training on.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        if self._parents and self._bits is None:
            # The first step shows in which arithmetic the loss runs.
            with Precision(self.trainable_parameters()) as precision:
                loss, stats = super().get_loss(batch)
            self._bits = precision.bits
        else:
            loss, stats = super().get_loss(batch)
        if not loss.requires_grad:
            raise UserError(f"the loss of problem {self.name!r} depends on no parameter")
        if not math.isfinite(stats["loss"]):
            raise FloatingPointError(f"the loss is {stats['loss']}")
        return loss, stats

    # --- hypergradients --------------------------------------------------------------------

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As betty's; first keeps what the hypergradient method needs of the step."""
        if self._parents and self._method.needs & {OPTIMIZER, STEPS}:
            for hook in ("custom_optimizer_step", "grad_callback", "param_callback"):
                if self.is_implemented(hook):
                    raise UserError(
                        f"hypergradient method {self._method.name!r} differentiates the steps of "
                        f"the optimizer, but problem {self.name!r} changes them in {hook}()"
                    )
            self._history.record(self, whole=STEPS in self._method.needs)
        super().optimizer_step(*args, **kwargs)

    def _backward(
        self, loss: Tensor, params: list[nn.Parameter], vectors: list[list[Tensor]] | None
    ) -> list[list[Tensor]]:
        """Adds ∂M/∂α to ``.grad``, and gives what ``vectors`` and v = ∇_φ M of each path add to.

        One backward pass gives both.
        """
        if not self._paths:
            torch.autograd.backward(loss, inputs=params)
            return []
        lowers = [path[1].trainable_parameters() for path in self._paths]
        inputs = [*params, *itertools.chain(*lowers)]
        grads = iter(torch.autograd.grad(loss, inputs, allow_unused=True))
        self.set_grads(params, list(itertools.islice(grads, len(params))))
        found = [
            [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(lower, itertools.islice(grads, len(lower)), strict=True)
            ]
            for lower in lowers
        ]
        if vectors is None:
            return found
        return [
            [a + b for a, b in zip(*pair, strict=True)] for pair in zip(vectors, found, strict=True)
        ]

    def _through(self, path: list[Problem], vector: list[Tensor]) -> list[Tensor]:
        """The implicit term of a path: each problem between its ends applies its own method."""
        # v is the gradient of this problem's loss next to the bottom of the path only.
        upper_loss = StatelessLoss(self, path[1], self, self.batches).of if len(path) == 3 else None
        name = " > ".join(problem.name for problem in path)
        for current, above in itertools.pairwise(path[1:]):
            with naming(self, on=current):
                vector = current.indirect_gradient(vector, above, upper_loss, name)
        return vector

    def indirect_gradient(
        self,
        vector: list[Tensor],
        above: Problem,
        upper_loss: Loss | None = None,
        path: str = "",
    ) -> list[Tensor]:
        """What ``above``'s loss changes by because its parameters α change this problem's φ.

        By this problem's method, on the batch of its last step: all micro-batches of it, or the
        first ``hypergradient_batch_size`` items. See dreamprm.hypergradients.

        Args:
            vector: v, the gradient of the upper loss with respect to φ, shaped as this problem's
                trainable parameters.
            above: the problem whose trainable parameters are α.
            upper_loss: M(φ, α), where v is its gradient.
            path: names the path that v comes along; a method with a memory has one for each.

        Returns:
            shaped as α.

        Raises:
            UserError: the method needs H, and there is more to H than this problem's loss says.
        """
        if self._paths and self._method.uses_curvature:
            raise UserError(
                f"hypergradient method {self._method.name!r} of problem {self.name!r} needs its "
                "Hessian, but a problem below answers to it, whose response would be missing: "
                "take identity, t1t2, darts or sama"
            )
        if not self._decay_said:
            say_decay(self)
            self._decay_said = True
        batches = hypergradient_batches(self)
        # What unrolls goes through steps of other rows, and an α that answers to a problem above it
        # does so as a whole.
        whole = STEPS in self._method.needs or bool(above.parents)
        rows = None if whole else rows_of(above.module, batches)
        point = replace(self._point(above, upper_loss, batches, rows), path=path)
        noted = dict(self._memory)
        before = RandomState.now(point.lower)
        found = indirect_gradient(self._method, point, vector, self.config.options)
        if STEPS in self._method.needs:
            found = self._history.settle(above, found)
        if is_due(self.config.fidelity_every, self.count, self.config.unroll_steps):
            after = RandomState.now(point.lower)
            before.restore()  # for the same dropout masks
            observed = replace(point, memory=noted)  # from the same start, and leaving none
            self.stats |= fidelity(self, above, batches, observed, vector, found, rows)
            after.restore()
        return found if rows is None else spread(found, rows, above.trainable_parameters())

    def _point(
        self, above: Problem, upper_loss: Loss | None, batches: list[Any], rows: Tensor | None
    ) -> Point:
        needs = self._method.needs
        assert self._bits is not None
        of_steps = self._history.steps(self, above) if STEPS in needs else None
        upper, steps = of_steps or (list(above.trainable_parameters()), [])
        if rows is not None:
            upper = [p.detach()[rows] for p in upper]
        return Point(
            lower_loss=holding(above.module, rows, StatelessLoss(self, self, above, batches).of),
            lower=list(self.trainable_parameters()),
            upper=upper,
            bits=self._bits,
            upper_loss=upper_loss and holding(above.module, rows, upper_loss),
            next_step=next_step(self, self._history) if OPTIMIZER in needs else None,
            steps=steps,
            memory=self._memory,
        )

    # --- checkpoints -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, at whatever step of whatever loop.

        betty keeps the first three only. A data loader takes part if it has ``state_dict``, as
        ``dreamprm.data.batches.BatchStream`` and torchdata's loaders do; another one starts a new
        epoch after a resume.
        """
        return super().state_dict() | {
            "count": self._count,
            "ready": list(self.ready or ()),
            "inner_loop_start": self._inner_loop_start,
            "roll_back": (self.module_state_dict_cache, self.opitmizer_state_dict_cache),
            "bits": self._bits,
            "memory": deepcopy(self._memory),
            "batches": self.batches,  # of the hypergradient, where an upper problem steps first
            "history": self._history.state_dict(),
            "loaders": [
                loader.state_dict() if hasattr(loader, "state_dict") else None
                for loader in self.train_data_loader or ()
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken."""
        super().load_state_dict(state_dict)
        self._count = state_dict["count"]
        self.ready = list(state_dict["ready"])
        self._inner_loop_start = state_dict["inner_loop_start"]
        self.module_state_dict_cache, self.opitmizer_state_dict_cache = state_dict["roll_back"]
        self._bits = state_dict["bits"]
        self._memory = to_device(state_dict["memory"], self.device)
        self.batches = to_device(state_dict["batches"], self.device)
        self.cur_batch = self.batches[-1] if self.batches else None
        self._history.load_state_dict(state_dict["history"], self.trainable_parameters())
        for loader, state in zip(self.train_data_loader or (), state_dict["loaders"], strict=True):
            if state is not None:
                loader.load_state_dict(state)
        if self.train_data_loader is not None:
            self.train_data_iterator = [iter(loader) for loader in self.train_data_loader]
