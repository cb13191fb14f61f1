"""Readouts: how a step's logit is read from the backbone's hidden state at the step's position.

Every readout is called as ``readout(hidden, head)``: ``hidden`` [b, S, d] are the hidden states at
the steps' positions only, ``head`` is the backbone's map from hidden states to the logits of its V
words, or None for a readout that needs none; the result is one logit per step, [b, S].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dreamprm.errors import UserError, unknown_name


class Marker(nn.Linear):
    """A linear map of the hidden state: w · h + b, started at zero (every score 0.5).

    It is one row: in full precision it costs nothing, and scores near 0 and 1 keep their order
    under bf16 autocast.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """The logits of the steps, [b, S]."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight.dtype)).squeeze(-1)


class Network(nn.Module):
    """A small network over the hidden state, its last layer started at zero (every score 0.5).

    The state is centred and scaled over its d entries first, as by a layer norm without weights:
    those of inner layers are of any size. Each entry is then centred and scaled over the training
    steps, where they are known beforehand (:meth:`standardise`): what all states have in common is
    so large in pretrained backbones that a hypergradient would otherwise see little else.

    Args:
        width: d.
        widths: of the hidden layers; none for a linear map.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = [width, *widths]
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = Marker(sizes[-1])

    def forward(self, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """The logits of the steps, [b, S]."""
        with torch.autocast(hidden.device.type, enabled=False):
            normed = self.norm(hidden.to(self.last.weight.dtype))
            return self.last(self.layers((normed - self.mean) / self.deviation))

    @torch.no_grad()
    def standardise(self, states: Tensor) -> None:
        """Centres and scales every entry as it is over some states, [n, d]."""
        normed = self.norm(states.to(self.mean))
        self.mean.copy_(normed.mean(0))
        self.deviation.copy_(normed.std(0, correction=0).clamp(min=1e-6))


class Vocabulary(Marker):
    """A linear map of the V vocabulary logits, started at zero (DreamPRM, arXiv 2505.20241).

    The published code maps the vocabulary logits of every position and then takes one position;
    here ``head`` sees the steps' positions alone. The two linear maps are kept apart, for their
    product would be trained otherwise.

    Args:
        width: V.
    """

    def forward(self, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """The logits of the steps, [b, S]."""
        assert head is not None
        return super().forward(head(hidden))


class Generative(nn.Module):
    """The log-odds of one word against another: l("+") − l("−"). It has no parameters.

    So score Math-Shepherd (arXiv 2312.08935), VisualPRM (arXiv 2503.10291) and DreamPRM-1.5 (arXiv
    2509.05542). Its sigmoid is P("+") among the two words. Only their two rows of the head are
    used.

    Args:
        tokens: the ids of the two words.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.tokens = list(tokens)

    def forward(self, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """The logits of the steps, [b, S]."""
        assert head is not None
        two: Any = head.weight[self.tokens]  # type: ignore[index]
        dtype = torch.promote_types(two.dtype, torch.float32)  # as in Marker
        bias: Any = None if head.bias is None else head.bias[self.tokens].to(dtype)  # type: ignore[index]
        with torch.autocast(hidden.device.type, enabled=False):
            logits = linear(hidden.to(dtype), two.to(dtype), bias)
        return logits[..., 0] - logits[..., 1]


@dataclass(frozen=True)
class Readout:
    """What the reward model must know of a readout.

    Args:
        build: makes it from d, V and the ids of the two words of a generative one.
        needs_head: whether it reads vocabulary logits.
        layout: how a solution is laid out in tokens, a name of ``dreamprm.models.layouts``.
        two_words: whether it reads the log-odds of two words, that the user may choose.
        has_widths: whether ``build`` also takes ``widths``, of hidden layers.
    """

    build: Callable[..., nn.Module]
    needs_head: bool
    layout: str = "markers"
    two_words: bool = False
    has_widths: bool = False


READOUTS = {
    "marker": Readout(lambda width, words, two: Marker(width), needs_head=False),
    "network": Readout(
        lambda width, words, two, widths: Network(width, widths), needs_head=False, has_widths=True
    ),
    "vocabulary": Readout(lambda width, words, two: Vocabulary(words), needs_head=True),
    "generative": Readout(lambda width, words, two: Generative(two), True, two_words=True),
    # Each step a user turn that is answered by one of the words (VisualPRM, DreamPRM-1.5).
    "conversation": Readout(lambda width, words, two: Generative(two), True, "turns", True),
    # The published DreamPRM layout: each prefix is a chat turn of its own.
    "prefix": Readout(lambda width, words, two: Vocabulary(words), True, "prefixes"),
}


def readout_named(name: str) -> Readout:
    """A readout by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in READOUTS:
        raise UserError(unknown_name("readout", name, READOUTS))
    return READOUTS[name]


def checked_layers(layers: Sequence[int], config: Any, readout: str) -> list[int]:
    """The layers that are read, counted from 1.

    Raises:
        UserError: there is no such layer, or the readout reads the last one.
    """
    count = config.get_text_config().num_hidden_layers
    for layer in layers:
        if not isinstance(layer, int) or not 1 <= layer % (count + 1) <= count or layer > count:
            raise UserError(f"model.layers has {layer!r}, expected 1 to {count}, or -{count} to -1")
    if layers and readout_named(readout).needs_head:
        raise UserError(
            f"model.layers are for model.readout=marker and network: {readout} reads what the "
            "vocabulary head does"
        )
    return [layer % (count + 1) for layer in layers]


# Of a text config: what some families do to the logits after the head.
AFTER_HEAD = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier")


def head_of(backbone: Any) -> nn.Linear:
    """A head that shares its weights with the backbone's input embeddings.

    Raises:
        UserError: the backbone's family changes the logits after the head.
    """
    text = backbone.config.get_text_config()
    for name in AFTER_HEAD:
        value = getattr(text, name, None)
        if value is not None and value != 1.0:
            raise UserError(
                f"backbones of type {text.model_type!r} change the vocabulary logits by {name}, "
                "which this readout does not: expected model.readout=marker for this one"
            )
    embeddings = backbone.get_input_embeddings()
    words, width = embeddings.weight.shape
    head = nn.Linear(width, words, bias=False, device="meta")
    head.weight = embeddings.weight
    return head


def one_token(tokenizer: Any, text: str) -> int:
    """The id of a text that is one token.

    Raises:
        UserError: it is not.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(
            f"{text!r} is {len(ids)} tokens for this tokenizer, expected one: "
            "set model.positive and model.negative to texts of one token each"
        )
    return ids[0]
