"""A reward model as ``AutoModelForTokenClassification`` loads it, with equal scores.

TRL's convention for process reward models: two labels a token, the second of them "right"; the
softmax at the token that ends a step is its score. The readout's row w is the second label's, and
the first one's is zero: softmax(0, w · h + b) = σ(w · h + b).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from dreamprm.errors import UserError
from dreamprm.models.lora import state_dict_of
from dreamprm.models.readouts import Generative, Marker, Vocabulary
from dreamprm.models.reward_model import ProcessRewardModel

LABELS = ("wrong", "right")


def save_token_classifier(model: ProcessRewardModel, folder: str | Path) -> None:
    """Writes the model as a Hugging Face token classifier, with its tokenizer.

    A step's score is the probability of label 1, ``right``, at the marker token that ends the step,
    in the text ``question``, blank line, then every step with the marker after it.

    Args:
        model: with a text-only backbone, and the readout ``marker``, ``vocabulary`` or
            ``generative``: those that are linear in the hidden state at the marker.
        folder: to write into.

    Raises:
        UserError: the backbone reads images, or its family has no token classifier in
            transformers, or the readout lays steps out as turns of a chat.
    """
    folder = Path(folder)
    if model.layout != "markers":
        raise UserError(
            f"the readout {model.settings['readout']!r} reads steps in the turns of a chat, which "
            "a token classifier does not: expected marker, vocabulary or generative"
        )
    backbone: Any = model.backbone
    known = AutoModelForTokenClassification._model_mapping
    if model.images is not None or type(backbone.config) not in known:
        raise UserError(
            f"transformers has no token classifier for backbones of type "
            f"{backbone.config.model_type!r}"
        )
    config = copy.deepcopy(backbone.config)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {n: i for i, n in enumerate(LABELS)}
    config.classifier_dropout = 0.0
    classifier: Any = AutoModelForTokenClassification.from_config(config, dtype=backbone.dtype)
    classifier.base_model.load_state_dict(state_dict_of(backbone, merged=True))
    weight, bias = _row(model)
    heads = [getattr(classifier, name, None) for name in ("score", "classifier")]
    linear = [head for head in heads if isinstance(head, nn.Linear) and head.bias is not None]
    if len(linear) != 1:
        raise UserError(
            f"the token classifier of {backbone.config.model_type!r} in transformers is no linear "
            "map of the hidden state"
        )
    with torch.no_grad():
        linear[0].weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
        linear[0].bias.copy_(torch.stack([torch.zeros_like(bias), bias]))
    classifier.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


@torch.no_grad()
def _row(model: ProcessRewardModel) -> tuple[Tensor, Tensor]:
    """w [d] and b of the step's logit, w · h + b."""
    readout, head = model.readout, model.head
    if isinstance(readout, Generative):
        assert head is not None
        positive, negative = head.weight[readout.tokens].float()  # type: ignore[index]
        return positive - negative, torch.zeros(())
    assert isinstance(readout, Marker)
    weight = readout.weight[0]
    if isinstance(readout, Vocabulary):
        assert head is not None
        weight = weight @ head.weight.to(weight.dtype)  # type: ignore[operator]
    return weight, readout.bias[0]
