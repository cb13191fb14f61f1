"""A small language model that has learned the form of a few solutions, to annotate with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    Idefics3Processor,
)

from dreamprm.models.families import FAMILIES
from dreamprm.models.tiny import PAD, tiny_backbone, tiny_image_processor, tiny_tokenizer
from tests.shared import SHARED

INSTRUCTIONS = "Solve."
SPECIAL = ["<|im_start|>", "<|im_end|>"]
# ChatML, as of Qwen; an assistant's turn that stands last is left open, for the model to go on.
TEMPLATE = """\
{%- for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}
{%- if not (loop.last and m['role'] == 'assistant') -%}{{ '<|im_end|>\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}"""
COUNT = 3  # questions


def questions() -> list[dict[str, str]]:
    """The first few questions of GSM8K's test set, cut short, with their answers."""
    rows = _rows()
    found = {row["question_id"]: row for row in rows}
    return [
        {"id": name, "domain": "gsm8k", "question": row["prompt"][:40], "answer": row["answer"]}
        for name, row in list(found.items())[:COUNT]
    ]


def write_questions(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in questions()))
    return path


def _rows() -> list[dict[str, Any]]:
    with (SHARED / "gsm8k_solutions.jsonl").open() as file:
        return [json.loads(line) for line, _ in zip(file, range(4 * COUNT), strict=False)]


def _solutions() -> list[tuple[str, str]]:
    """Questions with made-up short solutions in steps, half of which end right."""
    pairs = []
    for row in questions():
        for final in (row["answer"], row["answer"], "7", "12"):
            steps = "\n".join(f"Step {n}: {final}." for n in range(1, 4))
            text = f"{INSTRUCTIONS}\n\nProblem:\n{row['question']}"
            prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            pairs.append((prompt, f"{steps}\nFinal answer: {final}{PAD}"))
    return pairs


def save_generator(folder: Path, steps: int = 60) -> Path:
    """Trains for a few seconds and saves model and tokenizer."""
    torch.manual_seed(0)
    pairs = _solutions()
    tokenizer = tiny_tokenizer(["".join(pair) for pair in pairs] * 2, 420, "<|step|>", SPECIAL)
    tokenizer.eos_token, tokenizer.chat_template = PAD, TEMPLATE
    model: Any = tiny_backbone("tiny-qwen2", tokenizer, 64, 1, 2, 1, 0, AutoModelForCausalLM)
    encoded = [(tokenizer.encode(a), tokenizer.encode(b)) for a, b in pairs]
    longest = max(len(a) + len(b) for a, b in encoded)
    ids = torch.full((len(encoded), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (prompt, solution) in enumerate(encoded):
        ids[row, : len(prompt) + len(solution)] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : len(prompt) + len(solution)] = torch.tensor(solution)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_image_reader(folder: Path) -> Path:
    """A model of random weights that reads images, with the processor that a server asks for.

    Of the families, Idefics3 alone has a processor without a part for videos, which wants
    torchvision.
    """
    family = FAMILIES["idefics3"]
    special = [*family.tokens.values(), *family.words, "<end_of_utterance>"]
    tokenizer = tiny_tokenizer(["What is in the image? Solve."] * 5, 400, "<|step|>", special)
    tokenizer.eos_token = PAD
    model: Any = tiny_backbone(
        "tiny-idefics3", tokenizer, 32, 1, 2, 1, 0, AutoModelForImageTextToText
    )
    images = tiny_image_processor("tiny-idefics3", model, 3136)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %}"
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
