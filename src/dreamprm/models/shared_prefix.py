"""Candidates of one question encode their common beginning once and continue from its cache.

The beginning, question and images included, is what the token sequences of the candidates have in
common; each candidate then runs its own tokens only, against the keys and values of the beginning.
The hidden states are those of a pass over the whole sequences, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from dreamprm.data.trajectory import Trajectory
from dreamprm.models.encoding import Encoder

# FlashAttention 2 takes right-padded queries after a cache for left-padded ones.
MASKED_ATTENTION = ("sdpa", "eager")


def can_share_prefixes(backbone: nn.Module) -> bool:
    """Whether candidates may continue from a cache of keys and values, at any distance from it.

    That is: every layer attends to all that came before. A window counts places in the cache, and
    shorter prefixes leave gaps there; a recurrent state has no places at all.
    """
    config: Any = backbone.config
    text = config.get_text_config()
    layers = getattr(text, "layer_types", None)
    if layers is None:
        layers = ["full_attention" if getattr(text, "sliding_window", None) is None else "window"]
    return set(layers) == {"full_attention"} and text._attn_implementation in MASKED_ATTENTION


def encode_groups(encode: Encoder, groups: Sequence[Sequence[Trajectory]]) -> dict[str, Any]:
    """A batch of whole groups, which :func:`last_hidden_state` runs without repetition.

    Args:
        encode: the model's encoder.
        groups: the b solutions, by question; those of a group share question and images.

    Returns:
        what ``encode`` makes of all the solutions, but in ``inputs`` only ``input_ids`` and
        ``attention_mask``; and ``prefixes``: ``inputs`` of one solution a group, ``owner`` [b],
        the group of each solution, and ``lengths`` [groups], of the prefixes in tokens.
    """
    batch = encode([row for group in groups for row in group], pixels=False)
    inputs = {name: batch["inputs"][name] for name in ("input_ids", "attention_mask")}
    owner = torch.tensor([g for g, group in enumerate(groups) for _ in group])
    first = torch.searchsorted(owner, torch.arange(len(groups)))
    ids, tokens = inputs["input_ids"], inputs["attention_mask"]
    same = ((ids == ids[first][owner]) & (tokens == 1)).long().cumprod(1).sum(1)
    # Every solution keeps a token of its own, so that there is something to continue with.
    same = torch.minimum(same, tokens.sum(1) - 1)
    lengths = torch.full((len(groups),), ids.shape[1]).scatter_reduce(0, owner, same, "amin")
    prefix = encode([group[0] for group in groups])["inputs"]
    longest = int(lengths.max())
    prefix = {
        name: value[:, :longest] if name.endswith("_ids") else value
        for name, value in prefix.items()
    }
    prefix["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    prefixes = {"inputs": prefix, "owner": owner, "lengths": lengths}
    return batch | {"inputs": inputs, "prefixes": prefixes}


def last_hidden_state(backbone: Any, batch: dict[str, Any]) -> Tensor:
    """The hidden states of a batch of :func:`encode_groups`, [b, L, d], as of a plain pass.

    Args:
        backbone: one for which :func:`can_share_prefixes` holds.
        batch: on the backbone's device; where its attention mask is 0, the states mean nothing.
    """
    ids, tokens = batch["inputs"]["input_ids"], batch["inputs"]["attention_mask"]
    prefixes = batch["prefixes"]
    owner, lengths = prefixes["owner"], prefixes["lengths"]
    # Qwen-VL keeps the distance between places and positions of the last pass that had images.
    keeper = next((m for m in backbone.modules() if "rope_deltas" in vars(m)), None)
    if keeper is not None:
        keeper.rope_deltas = None
    begun = backbone(**prefixes["inputs"], use_cache=True)
    # The name is another from transformers 5.24 on.
    name = "cache" if "cache" in begun else "past_key_values"
    shift = None if keeper is None else keeper.rope_deltas
    starts = lengths[owner][:, None]
    own = starts + torch.arange(int((tokens.sum(1) - starts[:, 0]).max()), device=ids.device)
    positions = own if shift is None else own + shift.to(own)[owner]
    own_tokens = (own < tokens.sum(1, keepdim=True)).long()
    ended = backbone(
        input_ids=ids.gather(1, own.clamp(max=ids.shape[1] - 1)),
        attention_mask=torch.cat([prefixes["inputs"]["attention_mask"][owner], own_tokens], 1),
        position_ids=positions,
        use_cache=True,
        **{name: Cache([_Prefix(layer, owner) for layer in begun[name].layers])},
    )
    # Place t of a sequence: in the prefix as it is, after it behind the longest prefix.
    longest = begun.last_hidden_state.shape[1]
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    place = torch.where(place < starts, place, longest + place - starts)
    hidden = torch.cat([_rows(begun.last_hidden_state, owner), ended.last_hidden_state], 1)
    place = place.clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))


class _Prefix(DynamicLayer):
    """One layer's keys and values of the prefixes, repeated for the candidates while it runs.

    transformers' own layer would keep the repeated ones of all layers until the pass is over.
    """

    def __init__(self, layer: Any, owner: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.owner = layer.keys, layer.values, owner
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return (
            torch.cat([_rows(self.keys, self.owner), key_states], -2),
            torch.cat([_rows(self.values, self.owner), value_states], -2),
        )


def _rows(values: Tensor, owner: Tensor) -> Tensor:
    """The row of each candidate's group; of one group without a copy."""
    return values.expand(len(owner), *values.shape[1:]) if len(values) == 1 else values[owner]
