"""A backbone that stays as it is: its states are computed once and kept, the readout is trained.

It then stands apart from the reward model: it is none of its parameters, of its state in a
checkpoint, or of what a hypergradient looks at.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Batches of solutions with the states at their steps, [b, S, d]; computed where not known.

    Args:
        model: one with a frozen backbone.
        items: the solutions; those without steps are in no batch.
        max_tokens: tokens that go through the backbone together, padding included.
        done: solutions that are left out.
    """
    store = model.store
    assert store is not None
    wanted = [i for i, item in enumerate(items) if item.steps and i not in done]
    known = [i for i in wanted if items[i] in store]
    for first in range(0, len(known), READ_AT_ONCE):
        rows = known[first : first + READ_AT_ONCE]
        of_rows = [store.get(items[i]) for i in rows]
        pieces = tuple(Piece((i,), (0,), 0) for i in rows)
        yield TokenBatch(pieces), padded(of_rows)
    missing = sorted(set(wanted) - set(known))
    if not missing:
        return
    new: dict[str, Tensor] = {}
    written = time.monotonic()
    kind = next(model.readout.parameters()).device.type
    model.backbone.to(kind)
    try:
        batches = model.step_states([items[i] for i in missing], max_tokens)
        while True:
            # What inference mode makes could not be trained on.
            with torch.inference_mode(False), torch.no_grad():
                precision = model.settings["frozen"]["precision"]
                with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
                    found = next(batches, None)
            if found is None:
                break
            batch, states = found
            rows = [missing[row] for row in batch.rows]
            for i, state in zip(rows, states, strict=True):
                new[store.key(items[i])] = state[: len(items[i].steps)].cpu().clone()
            if time.monotonic() - written > SECONDS:
                store.add(new)
                new, written = {}, time.monotonic()
            pieces = tuple(
                replace(piece, rows=tuple(missing[row] for row in piece.rows))
                for piece in batch.pieces
            )
            yield TokenBatch(pieces), states
    finally:
        store.add(new)


def compute_states(
    model: ProcessRewardModel, items: Sequence[Trajectory], progress: str | None = None
) -> None:
    """Has the store know all of the solutions; an interrupt loses what the last seconds gave."""
    assert model.store is not None
    missing = [item for item in items if item.steps and item not in model.store]
    if not missing:
        return
    on_cpu = next(model.readout.parameters()).device.type == "cpu"
    with progress_bar(progress, len(missing), "solution") as bar:
        for batch, _ in states_of(model, missing, TOKENS_ON_CPU if on_cpu else MAX_TOKENS):
            bar.update(len(batch.rows))


def some_states(store: StateStore, rows: Sequence[Trajectory], most: int = 4096) -> Tensor:
    """The states of all steps, [n, d], of solutions evenly drawn: so many at most."""
    count = min(len(rows), most)
    found = [store.get(rows[i * len(rows) // count]) for i in range(count)]
    return torch.cat([states for states in found if states is not None])


def padded(states: Sequence[Any]) -> Tensor:
    """[b, S, d] of solutions' states, with zeros behind the last step."""
    return pad_sequence(list(states), batch_first=True)


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
        return {"states": padded(states), **self.encode.labels(trajectories)}


def plain_name(name: str) -> str:
    """A backbone's folder as an absolute path, or its hub name."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
