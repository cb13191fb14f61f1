"""A reward model exported as a Hugging Face token classifier has equal scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from dreamprm.errors import UserError
from dreamprm.integrations.token_classification import save_token_classifier
from dreamprm.models.build import build_model
from dreamprm.models.config import LoraConfig, ModelConfig
from dreamprm.models.reward_model import STEP_MARKER
from tests.test_reward_model import TINY, rows


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("readout", ["marker", "vocabulary", "generative"])
@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-qwen3", "tiny-llama"])
def test_others_load_it_and_get_the_same_scores(
    name: str, readout: str, lora: int, tmp_path: Path
) -> None:
    data = rows(tmp_path, images=False)
    config = ModelConfig(name, readout=readout, tiny=TINY, lora=LoraConfig(rank=lora))
    torch.manual_seed(0)  # of the adapters
    model = build_model(config, data, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.startswith("readout") or "lora_B" in key:
                parameter.normal_(std=0.3, generator=generator)
    save_token_classifier(model, tmp_path / "classifier")

    classifier = AutoModelForTokenClassification.from_pretrained(tmp_path / "classifier").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "classifier")
    marker = tokenizer.convert_tokens_to_ids(STEP_MARKER)
    assert classifier.config.id2label == {0: "wrong", 1: "right"}
    seen = set()
    for row, expected in zip(data, model.step_logits(data), strict=True):
        ids = tokenizer(f"{row.question}\n\n")["input_ids"]
        for step in row.steps:
            ids += [*tokenizer(step)["input_ids"], marker]
        with torch.no_grad():
            logits = classifier(torch.tensor([ids])).logits[0, torch.tensor(ids) == marker]
        # As log-odds of the softmax: scores near 1 would hide a difference.
        log_odds = (logits[:, 1] - logits[:, 0]).tolist()
        assert log_odds == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert logits.softmax(-1)[:, 1].tolist() == pytest.approx(
            torch.tensor(expected).sigmoid().tolist(), abs=1e-5
        )
        seen |= set(expected)
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("name", "readout", "message"),
    [
        ("tiny-qwen2-vl", "marker", "no token classifier for backbones of type 'qwen2_vl'"),
        ("tiny-qwen2", "conversation", "the readout 'conversation' reads steps in the turns"),
        ("tiny-qwen2", "prefix", "the readout 'prefix' reads steps in the turns of a chat"),
    ],
)
def test_what_a_token_classifier_cannot_be_is_refused(
    name: str, readout: str, message: str, tmp_path: Path
) -> None:
    data = rows(tmp_path, images=False)
    model = build_model(ModelConfig(name, readout=readout, tiny=TINY), data, seed=0)
    with pytest.raises(UserError, match=message):
        save_token_classifier(model, tmp_path / "classifier")
    assert not (tmp_path / "classifier").exists()
