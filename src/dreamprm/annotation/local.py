"""Generation by a Hugging Face model on this machine, in batches, every text from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from dreamprm.annotation.config import AnnotationConfig, LocalConfig
from dreamprm.annotation.generators import Reply, Request
from dreamprm.annotation.prompt import ask
from dreamprm.annotation.questions import Question
from dreamprm.data.batches import to_device
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.models.encoding import Encoder
from dreamprm.models.families import FAMILIES, QWEN_TOKENS, family_of
from dreamprm.models.fingerprint import weights_digest
from dreamprm.models.images import FamilyImages
from dreamprm.models.tiny import (
    PAD,
    TINY_BACKBONES,
    tiny_backbone,
    tiny_image_processor,
    tiny_tokenizer,
)


class LocalGenerator:
    """Samples from a causal or vision-language model.

    Args:
        config: of the annotation.
        questions: of it; a tiny model's tokenizer is made from their text.

    Raises:
        UserError: there is no such model, or it does not read the questions' images.
    """

    samples_per_request = 1
    together = True

    def __init__(self, config: AnnotationConfig, questions: Sequence[Question]) -> None:
        self.config = config
        self.capacity = config.local.batch_size
        assert config.local.model is not None
        load = _tiny if config.local.model.startswith("tiny-") else _pretrained
        self.model, self.tokenizer, processor = load(config.local, questions, config.seed)
        if config.local.device == "gpu" and not torch.cuda.is_available():
            raise UserError("local.device is gpu, and torch finds none")
        use_gpu = config.local.device != "cpu" and torch.cuda.is_available()
        self.model.to("cuda" if use_gpu else "cpu").eval()
        family = family_of(self.model.config)
        self.images = (
            FamilyImages(family, processor, self.tokenizer, self.model.config) if family else None
        )
        pictured = next((question.id for question in questions if question.images), None)
        if pictured is not None and family is None:
            raise UserError(
                f"question {pictured!r} has images, but {config.local.model} reads text only"
            )
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = [ends] if isinstance(ends, int) else list(ends or [])
        if not self.ends:
            raise UserError(f"{config.local.model} has no token that ends a text")
        # The encoder's marker ends a step, which nothing here asks for: any token does.
        marker = next(t for t in self.tokenizer.get_vocab() if t != self.tokenizer.unk_token)
        self.encoder = Encoder(self.tokenizer, self.images, marker, layout="prefixes")
        self.queue: list[Request] = []
        self._prompt = lru_cache(maxsize=64)(self._encode)

    def fingerprint(self) -> dict[str, Any]:
        """The weights, and what turns text into tokens."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        settings = {"tokenizer": tokenizer, "template": self.tokenizer.chat_template}
        return {"local.model": weights_digest(self.model, settings)}

    def start(self, requests: Sequence[Request]) -> None:
        """Takes requests on."""
        self.queue.extend(requests)

    def finished(self) -> list[tuple[Request, Reply]]:
        """Answers all requests that were started, in one batch."""
        requests, self.queue = self.queue, []
        return list(zip(requests, self._generate(requests), strict=True))

    def rescue(self) -> list[tuple[Request, Reply]]:
        """Nothing here is paid for."""
        self.queue = []
        return []

    def close(self) -> None:
        """Holds nothing to give back."""

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request]) -> list[Reply]:
        rows = []
        for request in requests:
            prompt, images = self._prompt(request.question)
            given = self.tokenizer.encode(
                request.given, add_special_tokens=False, split_special_tokens=True
            )
            rows.append((prompt + given, images))
        longest = max(len(ids) for ids, _ in rows)
        pad = self.encoder.pad_id
        input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids, _ in rows])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in rows])
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if self.images is not None:
            inputs |= self.images.inputs(input_ids, [images for _, images in rows])
        seeds = [request.seed(self.config.seed) for request in requests]
        found = self.model.generate(
            **to_device(inputs, self.model.device),
            logits_processor=_sampling(self.config, seeds),
            generation_config=GenerationConfig(
                max_new_tokens=self.config.max_new_tokens,
                # The last processor leaves one token: it draws, from each row's own seed.
                do_sample=False,
                use_cache=True,
                eos_token_id=self.ends,
                pad_token_id=pad,
            ),
        )
        replies = []
        for (ids, _), new in zip(rows, found[:, longest:].tolist(), strict=True):
            end = next((i for i, token in enumerate(new) if token in self.ends), len(new))
            text = self.tokenizer.decode(new[:end], skip_special_tokens=True)
            replies.append(Reply((text,), len(ids), min(end + 1, len(new))))
        return replies

    def _encode(self, question: Question) -> tuple[list[int], list[dict[str, Tensor]]]:
        text = ask(question, self.config.instructions)
        return self.encoder.prompt(Trajectory(question.id, "", text, (), question.images))


def _sampling(config: AnnotationConfig, seeds: Sequence[int]) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if config.temperature > 0:
        processors.append(TemperatureLogitsWarper(config.temperature))
        if config.top_p < 1:
            processors.append(TopPLogitsWarper(config.top_p))
        processors.append(_OwnSeeds(seeds, config.max_new_tokens))
    return processors


class _OwnSeeds(LogitsProcessor):
    """Draws each row's next token by inverting the distribution function at a number of its own.

    transformers' own sampling draws for all rows from one stream, so that a text would depend on
    its place in the batch.
    """

    def __init__(self, seeds: Sequence[int], tokens: int) -> None:
        draws = [
            torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self.draws = torch.stack(draws, dim=1)  # [tokens, rows]
        self.place = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        total = scores.double().softmax(-1).cumsum(-1)
        draw = self.draws[self.place].to(scores.device)[:, None] * total[:, -1:]
        self.place += 1
        # The first token whose sum exceeds the draw; it has a probability above 0.
        token = (total <= draw).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


Loaded = tuple[Any, Any, Any]  # model, tokenizer, image processor or None


def _pretrained(config: LocalConfig, questions: Sequence[Question], seed: int) -> Loaded:
    name = str(config.model)
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        family = family_of(AutoConfig.from_pretrained(name))
        loader: Any = AutoModelForImageTextToText if family else AutoModelForCausalLM
        model = loader.from_pretrained(name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(name)
        return model, tokenizer, AutoImageProcessor.from_pretrained(name) if family else None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot load a model from {name!r}: {error}") from error


def _tiny(config: LocalConfig, questions: Sequence[Question], seed: int) -> Loaded:
    name, tiny = str(config.model), config.tiny
    if name not in TINY_BACKBONES:
        raise UserError(unknown_name("tiny backbone", name, TINY_BACKBONES))
    family = FAMILIES.get(TINY_BACKBONES[name])
    tokenizer = tiny_tokenizer(
        (ask(question, None) for question in questions),
        tiny.vocabulary,
        "<|step|>",
        [*family.tokens.values(), *family.words] if family else QWEN_TOKENS.values(),
    )
    tokenizer.eos_token = PAD
    kind: Any = AutoModelForImageTextToText if family else AutoModelForCausalLM
    sizes = (tiny.width, tiny.layers, tiny.heads, tiny.vision_layers)
    model: Any = tiny_backbone(name, tokenizer, *sizes, seed, kind)
    if config.dtype != "auto":
        model = model.to(getattr(torch, config.dtype))
    return model, tokenizer, tiny_image_processor(name, model, tiny.max_pixels)
