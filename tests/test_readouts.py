"""The readouts against their naive forms on the real classes with heads, in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig
from dreamprm.models.readouts import READOUTS
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.tasks.modules import load_config
from tests.test_reward_model import TINY, close, rows

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)


def save_with_head(folder: Path, data: list[Trajectory], name: str, tied: bool) -> Any:
    """A backbone with its head, of the real class, as others save it."""
    tiny = build_model(ModelConfig(name, tiny=TINY), data, seed=0)
    tiny.tokenizer.save_pretrained(folder)
    if tiny.image_processor is not None:
        tiny.image_processor.save_pretrained(folder)
    config = AutoConfig.for_model(**tiny.backbone.config.to_dict())
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
    kind: Any = AutoModelForCausalLM if tiny.images is None else AutoModelForImageTextToText
    torch.manual_seed(0)
    full = kind.from_config(config)
    assert (full.lm_head.weight is full.get_input_embeddings().weight) is tied
    full.save_pretrained(folder)
    return full


@pytest.mark.parametrize("readout", ["vocabulary", "generative"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llama"])
def test_logits_at_the_steps_alone_are_the_naive_form(
    readout: str, tied: bool, name: str, tmp_path: Path
) -> None:
    data = rows(tmp_path, images=name == "tiny-qwen2-vl")
    full = save_with_head(tmp_path, data, name, tied).double()
    model = ProcessRewardModel.from_pretrained(tmp_path, torch.float64, readout=readout).double()
    if readout == "vocabulary":
        torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    batch = model.encoder()(data)
    mask = batch["step_mask"]
    # The published form: every word at every position, then one position, then the linear map.
    everything = full(**batch["inputs"]).logits[torch.arange(3)[:, None], batch["step_positions"]]
    if readout == "vocabulary":
        naive = (everything @ model.readout.weight.T).squeeze(-1)
    else:
        plus, minus = model.tokenizer.convert_tokens_to_ids(["+", "-"])
        naive = everything[..., plus] - everything[..., minus]
    found = model(batch)
    assert torch.allclose(found[mask], naive[mask], rtol=1e-10, atol=1e-12)

    def gradients(logits: Tensor, module: torch.nn.Module) -> list[Tensor]:
        loss = (logits.sigmoid() - 0.3).square()[mask].sum()
        parameters = dict(module.named_parameters())
        found = torch.autograd.grad(loss, [*parameters.values()], materialize_grads=True)
        order = dict(zip(parameters, found, strict=True))
        # The head comes last in both, and is one with the embeddings where it is tied.
        return [g for name, g in order.items() if not name.startswith("readout")]

    expected = gradients(naive, full)
    assert sum(g.abs().sum() > 0 for g in expected) > 0.6 * len(expected)
    for a, b in zip(gradients(found, model), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_readout_is_saved_with_the_model(readout: str, tied: bool, tmp_path: Path) -> None:
    data = rows(tmp_path, images=False)
    save_with_head(tmp_path, data, "tiny-qwen2", tied)
    AutoTokenizer.from_pretrained(tmp_path, chat_template=CHAT).save_pretrained(tmp_path)
    model = ProcessRewardModel.from_pretrained(tmp_path, readout=readout)
    if not READOUTS[readout].two_words:
        assert model.score(data)[0] == [0.5, 0.5]
        for p in model.readout.parameters():
            torch.nn.init.normal_(p)
    torch.nn.init.normal_(model.backbone.get_input_embeddings().weight)
    scores = model.step_logits(data)
    assert len({x for row in scores for x in row}) == 7
    model.save_pretrained(tmp_path / "saved")
    again = ProcessRewardModel.from_pretrained(tmp_path / "saved")
    assert again.step_logits(data) == scores
    if again.head is not None:
        shared = again.backbone.get_input_embeddings().weight
        assert (again.head.weight is shared) is tied
    other = "marker" if readout != "marker" else "vocabulary"
    with pytest.raises(UserError, match=f"saved with readout '{readout}', and '{other}'"):
        ProcessRewardModel.from_pretrained(tmp_path / "saved", readout=other)


def prefix_model(chat: bool, folder: Path, name: str) -> tuple[Any, list[Trajectory]]:
    data = rows(folder, images=name == "tiny-qwen2-vl")
    model = build_model(ModelConfig(name, readout="prefix", tiny=TINY), data, seed=0)
    model.tokenizer.chat_template = CHAT if chat else None
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    return model, data


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llama", "tiny-smolvlm"])
def test_without_a_chat_template_prefixes_score_as_the_vocabulary_readout(
    name: str, tmp_path: Path
) -> None:
    prefixes, data = prefix_model(False, tmp_path, name)
    together = build_model(ModelConfig(name, readout="vocabulary", tiny=TINY), data, seed=0)
    together.load_state_dict(prefixes.state_dict())
    assert len(prefixes.encoder()(data)["inputs"]["input_ids"]) == 2 + 4 + 1
    for a, b in zip(prefixes.score(data), together.score(data), strict=True):
        assert close(a, b)


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llama"])
def test_every_prefix_is_a_chat_turn_as_published(name: str, tmp_path: Path) -> None:
    model, data = prefix_model(True, tmp_path, name)
    tokenizer, encode = model.tokenizer, model.encoder()
    for row in data:
        ids_of = encode.rows(row)
        assert len(ids_of) == len(row.steps)
        for count, (ids, positions) in enumerate(ids_of, start=1):
            assert positions == [len(ids) - 1]
            text = "\n\n".join([row.question, *row.steps[:count]])
            content = [{"type": "image"}] * len(row.images) + [{"type": "text", "text": text}]
            expected = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            # Placeholders are repeated: 56 × 56 pixels are 4 tokens, 112 × 56 are 8.
            times = {2: [4, 4], 1: [8], 0: []}[len(row.images)]
            for n in times:
                expected = expected.replace("<|image_pad|>", "\0" * n, 1)
            expected = expected.replace("\0", "<|image_pad|>")
            assert tokenizer.decode(ids) == expected
    # A step's score is that of the solution that ends there.
    scores = model.score(data)
    for row, found in zip(data, scores, strict=True):
        cut = [replace(row, steps=row.steps[: i + 1]) for i in range(len(row.steps))]
        assert close([s[-1] for s in model.score(cut)], found)
    assert model.score([replace(data[0], steps=()), data[1]])[0] == []


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llama"])
def test_a_conversation_is_the_chat_template_s_and_read_before_every_answer(
    name: str, tmp_path: Path
) -> None:
    data = rows(tmp_path, images=name == "tiny-qwen2-vl")
    full = save_with_head(tmp_path, data, name, True).double()
    AutoTokenizer.from_pretrained(tmp_path, chat_template=CHAT).save_pretrained(tmp_path)
    model = ProcessRewardModel.from_pretrained(
        tmp_path, torch.float64, readout="conversation", system="Judge every step."
    )
    tokenizer, encode = model.tokenizer, model.encoder()
    plus, minus = tokenizer.convert_tokens_to_ids(["+", "-"])
    scores = model.step_logits(data)
    for row, found in zip(data, scores, strict=True):
        batch = encode([row])
        ids = batch["inputs"]["input_ids"][0]
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Judge every step."}]
        for n, (step, position) in enumerate(
            zip(row.steps, batch["step_positions"][0].tolist(), strict=True)
        ):
            text = step if n else f"{row.question}\n\n{step}"
            content = [{"type": "image"}] * len(row.images if n == 0 else ())
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": text}]})
            expected = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            for tokens in {2: [4, 4], 1: [8], 0: []}[len(row.images)]:
                expected = expected.replace("<|image_pad|>", "\0" * tokens, 1)
            expected = expected.replace("\0", "<|image_pad|>")
            assert tokenizer.decode(ids[: position + 1]) == expected
            # Generation up to here: the next word, of all words, is what the score is read from.
            inputs = batch["inputs"] | {"input_ids": ids[None, : position + 1]}
            inputs |= {k: v[:, : position + 1] for k, v in inputs.items() if "mask" in k}
            if "mm_token_type_ids" in inputs:
                inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, : position + 1]
            words = full(**inputs).logits[0, -1]
            assert found[n] == pytest.approx((words[plus] - words[minus]).item(), abs=1e-6)
            messages.append({"role": "assistant", "content": "+"})
    assert model.score([replace(data[0], steps=()), data[1]])[0] == []
    assert len({x for row in scores for x in row}) == 7
    # Candidates of one question share its tokens.
    twice = [data[0], replace(data[0], id="again", steps=data[0].steps[::-1])]
    together = model.step_logits(twice)
    for row, found in zip(twice, together, strict=True):
        assert model.step_logits([row])[0] == pytest.approx(found, abs=1e-5)


def test_a_template_that_begins_the_last_answer_otherwise_is_refused(tmp_path: Path) -> None:
    data = rows(tmp_path, images=False)
    model = build_model(ModelConfig("tiny-llama", readout="conversation", tiny=TINY), data, seed=0)
    model.tokenizer.chat_template = CHAT.replace(
        "assistant\n{% endif %}", "assistant\n<think>{% endif %}"
    )
    assert len(model.score([data[2]])[0]) == 1  # nothing to differ from
    with pytest.raises(UserError, match=r"begins its last answer otherwise.*<think>"):
        model.score([data[0]])


def test_a_system_message_is_for_chats(tmp_path: Path) -> None:
    data = rows(tmp_path, images=False)
    for readout in ("marker", "prefix"):  # the second one: without a chat template
        config = ModelConfig("tiny-llama", readout=readout, system="be strict", tiny=TINY)
        with pytest.raises(UserError, match=r"model\.system"):
            build_model(config, data, seed=0).score(data)


def test_heads_with_a_bias_and_other_families(tmp_path: Path) -> None:
    data = rows(tmp_path, images=False)
    tokenizer = build_model(ModelConfig("tiny-llama", tiny=TINY), data, seed=0).tokenizer
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes |= {"vocab_size": len(tokenizer), "intermediate_size": 64, "pad_token_id": 0}
    sizes |= {"bos_token_id": None, "eos_token_id": None}
    plus, minus = tokenizer.convert_tokens_to_ids(["+", "-"])
    for kind in ("phi", "gpt2"):
        full = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
        if kind == "phi":
            torch.nn.init.normal_(full.lm_head.bias)
        full.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        for readout in ("generative", "vocabulary"):
            model = ProcessRewardModel.from_pretrained(tmp_path / kind, readout=readout)
            if readout == "vocabulary":
                torch.nn.init.normal_(model.readout.weight)
            batch = model.encoder()([data[0]])
            with torch.no_grad():
                words = full(batch["inputs"]["input_ids"]).logits[0, batch["step_positions"][0]]
                naive = words[:, plus] - words[:, minus]
                if readout == "vocabulary":
                    naive = (words @ model.readout.weight.T)[:, 0]
            found = model.step_logits([data[0]])[0]
            assert found == pytest.approx(naive.tolist(), rel=1e-4, abs=1e-4)
            model.save_pretrained(tmp_path / "saved")
            again = ProcessRewardModel.from_pretrained(tmp_path / "saved")
            assert again.step_logits([data[0]])[0] == found
    for kind in ("cohere", "granite"):
        scaled = {"logit_scale": 0.1, "logits_scaling": 8.0}
        config = AutoConfig.for_model(kind, **sizes, **scaled)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        with pytest.raises(UserError, match="change the vocabulary logits by logit"):
            ProcessRewardModel.from_pretrained(tmp_path / kind, readout="generative")
        assert ProcessRewardModel.from_pretrained(tmp_path / kind).score(data)[2] == [0.5]


def test_a_conversation_needs_a_chat_template(tmp_path: Path) -> None:
    data = rows(tmp_path, images=False)
    config = ModelConfig("tiny-llama", readout="conversation", tiny=TINY)
    with pytest.raises(UserError, match="no chat template"):
        build_model(config, data, seed=0).score(data)


def test_images_that_a_chat_template_leaves_out_are_an_error(tmp_path: Path) -> None:
    model, data = prefix_model(True, tmp_path, "tiny-qwen2-vl")
    model.tokenizer.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(UserError, match="does not keep 2 images"):
        model.score(data)


def test_another_marker_and_other_words(tmp_path: Path) -> None:
    data = rows(tmp_path, images=False)
    save_with_head(tmp_path, data, "tiny-qwen2", True)
    # As Math-Shepherd: a word that the tokenizer has marks the steps.
    model = ProcessRewardModel.from_pretrained(
        tmp_path, readout="generative", step_marker="%", positive="a", negative="b"
    )
    swapped = ProcessRewardModel.from_pretrained(
        tmp_path, readout="generative", step_marker="%", positive="b", negative="a"
    )
    ids, positions = model.encoder().tokens(data[0])
    assert [model.tokenizer.decode(ids[p]) for p in positions] == ["%", "%"]
    for a, b in zip(model.step_logits(data), swapped.step_logits(data), strict=True):
        assert a == [-x for x in b]
    with pytest.raises(UserError, match=r"'yes, it is' is \d+ tokens"):
        ProcessRewardModel.from_pretrained(
            tmp_path, readout="generative", positive="yes, it is", negative="a"
        )
    with pytest.raises(UserError, match="did you mean 'vocabulary'"):
        ProcessRewardModel.from_pretrained(tmp_path, readout="vocabularies")


def test_the_config_names_readouts() -> None:
    assert load_config("demo", ["model.readout=prefix"]).model.readout == "prefix"
    with pytest.raises(UserError, match="did you mean 'generative'"):
        load_config("demo", ["model.readout=generativ"])


@pytest.mark.parametrize("readout", ["vocabulary", "generative"])
def test_a_shared_head_follows_the_embeddings_in_stateless_calls(
    readout: str, tmp_path: Path
) -> None:
    """Hypergradients put other tensors in the parameters' places, under one name each."""
    data = rows(tmp_path, images=False)
    model = build_model(ModelConfig("tiny-qwen2", readout=readout, tiny=TINY), data, seed=0)
    assert "head.weight" not in dict(model.named_parameters())
    batch = model.encoder()(data)
    if readout == "vocabulary":
        torch.nn.init.normal_(model.readout.weight, std=0.01)
    other = {name: p.detach() * 1.1 for name, p in model.named_parameters()}
    found = torch.func.functional_call(model, other, (batch,))
    before = model(batch)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(other[name])
    assert torch.equal(found, model(batch))
    assert not torch.allclose(found, before)
