"""A backbone that stays as it is: its states are computed once and kept, the readout is trained.

It then stands apart from the reward model: it is none of its parameters, of its state in a
checkpoint, or of what a hypergradient looks at.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dreamprm.data.stored import cache_folder
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.encoding import Encoder
from dreamprm.models.fingerprint import reading_digest, weights_digest
from dreamprm.models.scoring_batches import MAX_TOKENS, Piece, TokenBatch
from dreamprm.models.state_store import StateStore
from dreamprm.progress import progress_bar

if TYPE_CHECKING:
    from dreamprm.models.reward_model import ProcessRewardModel

TOKENS_ON_CPU = 2048  # that go through together: seconds, so that little is lost by an interrupt
SECONDS = 20.0  # between two files of new states
READ_AT_ONCE = 256  # solutions, from disk


def freeze(
    model: ProcessRewardModel, precision: str = "fp32", base: str | None = None, states: str = ""
) -> None:
    """Sets backbone and vocabulary head apart, and opens the store of what they say.

    Args:
        model: the reward model.
        precision: in which the backbone runs: fp32, or bf16 by autocast.
        base: the folder or hub name that holds this very backbone, which is not saved again then.
        states: the digest of what the states are a function of, where it is known.

    Raises:
        UserError: the readout has nothing to train, or the digest is another.
    """
    if not any(True for _ in model.readout.parameters()):
        raise UserError(
            f"model.freeze_backbone leaves nothing to train of model.readout="
            f"{model.settings['readout']}: take marker or network"
        )
    # What is done with the states is no part of it.
    parts = (model.layout, model.step_marker, model.system, model.answer, model.layers, precision)
    found = xxhash.xxh3_128(repr(parts).encode())
    found.update(weights_digest(model.backbone, {}).encode())
    found.update(reading_digest(model).encode())
    digest = found.hexdigest()
    if states not in ("", digest):
        raise UserError(
            f"the reward model was trained on another backbone than the one in {base}: its states "
            f"have the digest {states}, found {digest}"
        )
    for name in ("backbone", "head"):
        part = model._modules.pop(name, None)
        if part is not None:
            part.requires_grad_(False).eval()
            object.__setattr__(model, name, part)  # as an attribute and no module
    model.base = base
    model.settings["frozen"] = {"precision": precision, "states": digest}
    model.store = StateStore(cache_folder() / "states" / digest)


def states_of(
    model: ProcessRewardModel,
    items: Sequence[Trajectory],
    max_tokens: int = MAX_TOKENS,
    done: Collection[int] = (),
) -> Iterator[tuple[TokenBatch, Tensor]]:
    """Batches of solutions with the states at their steps, [b, S, d]; first computes the missing.

    Args:
        model: one with a frozen backbone.
        items: the solutions; those without steps are in no batch.
        max_tokens: tokens that go through the backbone together, padding included.
        done: solutions of batches that are left out; the others are the same as without it.
    """
    compute_states(model, items, "states", max_tokens)
    assert model.store is not None
    wanted = [i for i, item in enumerate(items) if item.steps]
    for first in range(0, len(wanted), READ_AT_ONCE):
        rows = wanted[first : first + READ_AT_ONCE]
        if rows[0] not in done:
            states = pad_sequence([model.store.get(items[i]) for i in rows], batch_first=True)
            yield TokenBatch(tuple(Piece((i,), (0,), 0) for i in rows)), states


def compute_states(
    model: ProcessRewardModel,
    items: Sequence[Trajectory],
    progress: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Has the store know all of the solutions; an interrupt loses what the last seconds gave.

    Args:
        model: one with a frozen backbone.
        items: the solutions; of those without steps there is nothing to know.
        progress: what the progress bar is called; None shows none.
        max_tokens: tokens that go through the backbone together, padding included; on a CPU at most
            ``TOKENS_ON_CPU``.
    """
    store = model.store
    assert store is not None
    # A solution that stands twice, as in a copy with other labels, is computed once.
    missing = list({store.key(i): i for i in items if i.steps and i not in store}.values())
    if not missing:
        return
    kind = next(model.readout.parameters()).device.type
    model.backbone.to(kind)
    batches = model.step_states(
        missing, min(max_tokens, TOKENS_ON_CPU) if kind == "cpu" else max_tokens
    )
    half = model.settings["frozen"]["precision"] == "bf16"
    new: dict[str, Tensor] = {}
    written = time.monotonic()
    with progress_bar(progress, len(missing), "solution") as bar:
        try:
            while True:
                # What inference mode makes could not be trained on.
                with (
                    torch.inference_mode(False),
                    torch.no_grad(),
                    torch.autocast(kind, torch.bfloat16, enabled=half),
                ):
                    found = next(batches, None)
                if found is None:
                    break
                batch, states = found
                for i, state in zip(batch.rows, states, strict=True):
                    new[store.key(missing[i])] = state[: len(missing[i].steps)].cpu().clone()
                if time.monotonic() - written > SECONDS:
                    store.add(new)
                    new, written = {}, time.monotonic()
                bar.update(len(batch.rows))
        finally:
            store.add(new)


def some_states(store: StateStore, rows: Sequence[Trajectory], most: int = 4096) -> Tensor:
    """The states of all steps, [n, d], of solutions evenly drawn: so many at most."""
    count = min(len(rows), most)
    found = [store.get(rows[i * len(rows) // count]) for i in range(count)]
    return torch.cat(found)


class StateEncoder:
    """Turns solutions into batches of the states that are known of them.

    Args:
        encode: the model's encoder, for all but what the backbone reads.
        store: of the states.
    """

    def __init__(self, encode: Encoder, store: StateStore) -> None:
        self.encode, self.store = encode, store

    def __call__(self, trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
        """As of :class:`Encoder`, with ``states`` [b, S, d] in the place of inputs and places."""
        states = [self.store.get(row) for row in trajectories]
        return {
            "states": pad_sequence(states, batch_first=True),
            **self.encode.labels(trajectories),
        }


def plain_name(name: str) -> str:
    """A backbone's folder as an absolute path, or its hub name."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
