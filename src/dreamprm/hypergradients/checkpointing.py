"""Checkpointed parts of a loss are recomputed as they were computed.

``torch.utils.checkpoint`` recomputes activations in the backward pass, when
``torch.func.functional_call`` has put the module's own parameters and buffers back: gradients of a
loss at other parameters are then silently wrong (torch 2.13). And it recomputes outside the
function modes of the forward pass, of which the rules of forward mode are one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from dreamprm.errors import UserError

REENTRANT = (
    "the loss calls a reentrant checkpoint, which has no derivatives here: give "
    "torch.utils.checkpoint use_reentrant=False, or a Hugging Face model "
    'gradient_checkpointing_enable({"use_reentrant": False})'
)


@contextmanager
def refusing_reentrant() -> Iterator[None]:
    """Within it, that torch refuses the backward pass of a reentrant checkpoint is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UserError(REENTRANT) from error


def recomputing_alike(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss; what torch's checkpoints keep of it is recomputed with what was in place.

    With the parameters and buffers of the modules that it calls, in torch's function modes.

    Raises:
        UserError: a checkpoint is reentrant: torch cannot differentiate it by ``autograd.grad``,
            and in forward mode it drops the tangents of the parameters without a word.
    """

    def call(*args: Any) -> Tensor:
        checkpoints = _Checkpoints()
        # functional_call swaps the parameters of a module and then calls it.
        hook = register_module_forward_pre_hook(checkpoints.meet)
        try:
            with checkpoints:
                return loss(*args)
        finally:
            hook.remove()

    return call


class _Checkpoints(TorchFunctionMode):
    """Finds the checkpoints that are under way when a torch function is called."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: set[nn.Module] = set()

    def meet(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""
        if module not in self.modules:
            self.modules.update(module.modules())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not torch.is_grad_enabled():
            _refuse_reentrant()
        frame = _frame()
        if frame is not None and not isinstance(frame.recompute_fn, _Alike):
            slots = [d for m in self.modules for d in (m._parameters, m._buffers)]
            held = [(slot, n, t) for slot in slots for n, t in slot.items() if t is not None]
            modes = [*_get_current_function_mode_stack(), self]
            frame.recompute_fn = _Alike(frame.recompute_fn, held, modes)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Alike:
    """A recomputation with the tensors in the slots, and the modes on, that there were."""

    recompute: Callable[..., None]
    held: Sequence[tuple[dict[str, Any], str, Tensor]]
    modes: Sequence[TorchFunctionMode]

    def __call__(self, *args: Any) -> None:
        now = [(slot, name, slot[name]) for slot, name, _ in self.held]
        try:
            _put(self.held)
            with ExitStack() as stack:
                for mode in self.modes:
                    stack.enter_context(mode)
                self.recompute(*args)
        finally:
            _put(now)


def _put(held: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
    for slot, name, tensor in held:
        slot[name] = tensor


def _frame() -> Any:
    """The state of the innermost checkpoint that is under way, which its hooks close over."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None:
        return None
    names = getattr(getattr(hooks[0], "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(hooks[0], "__closure__", None) or (), strict=False))
    frame = cells["frame"].cell_contents if "frame" in cells else None
    return frame if hasattr(frame, "recompute_fn") else None


def _refuse_reentrant() -> None:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_qualname == "CheckpointFunction.forward":
            raise UserError(REENTRANT)
        frame = frame.f_back  # type: ignore[assignment]
