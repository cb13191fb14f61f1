"""Every key of an annotation's config."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from dreamprm.annotation.grading import RULES
from dreamprm.config.checking import check_choices, check_numbers, value_of
from dreamprm.config.reading import read_config
from dreamprm.errors import UserError, unknown_name
from dreamprm.models.config import TinyConfig


@dataclass
class LocalConfig:
    """A Hugging Face model on this machine."""

    # A folder or hub name, or for random weights a name of dreamprm.models.tiny, as tiny-qwen2.
    model: str | None = None
    # Solutions that are written side by side; changes no result but for rounding.
    batch_size: int = 16
    # float64, float32 or bfloat16, of the parameters; auto: as they were saved.
    dtype: str = "auto"
    device: str = "default"  # a GPU where there is one; cpu; gpu
    tiny: TinyConfig = field(default_factory=TinyConfig)


@dataclass
class PricesConfig:
    """Money for a million tokens, for the estimate and the progress bar; 0 shows none."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass
class OpenAIConfig:
    """A server of the OpenAI protocol. Its key is read from the environment only."""

    model: str | None = None  # its name at the server
    # E.g. http://localhost:8000/v1; OPENAI_BASE_URL, else OpenAI's own, where not given.
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"  # the variable that holds the key
    # How a solution is continued from a prefix. prefill: the prefix is the beginning of the
    # assistant's turn, for servers that go on with it; instruction: a user turn asks to go on;
    # completions: /v1/completions with the plain text, for base models (no images).
    continuation: str = "instruction"
    concurrency: int = 8  # requests at a time
    # Completions asked for in one request (`n`): the prompt is paid for once. 1 where the server
    # knows no `n`.
    samples_per_request: int = 1
    max_tokens_key: str = "max_tokens"  # or max_completion_tokens, which newer OpenAI models want
    send_seed: bool = True  # for servers that refuse `seed`: false
    extra_body: dict[str, Any] = field(default_factory=dict)  # more of every request's body
    # More of the body of a request that continues a prefix. vLLM wants for continuation: prefill
    # {continue_final_message: true, add_generation_prompt: false}.
    continue_body: dict[str, Any] = field(default_factory=dict)
    timeout: float = 300.0  # seconds for an answer
    # Again after 429, 5xx, a timeout or a lost connection, after twice as long each time.
    retries: int = 8
    first_delay: float = 1.0  # seconds; Retry-After of the server goes before
    longest_delay: float = 60.0
    image_tokens: int = 800  # of one image, for the estimate
    prices: PricesConfig = field(default_factory=PricesConfig)


@dataclass
class GradingConfig:
    """How a final answer is compared with the right one."""

    # auto, math, choice, number, string (dreamprm.annotation.grading); auto goes by the right
    # answer: with options choice, a number number, a formula math, else string.
    rule: str = "auto"
    rules: dict[str, str] = field(default_factory=dict)  # of single domains, before `rule`
    tolerance: float = 1e-6  # relative, of number
    timeout: float = 5.0  # seconds for one comparison by math; longer is wrong


@dataclass
class AnnotationConfig:
    """One annotation."""

    questions: str = MISSING  # a file of questions with answers; docs/annotation.md
    out: str = MISSING  # a .jsonl file; where there are images, in or above their folder
    seed: int = 0
    chains: int = 4  # solutions of a question; N of the paper
    completions: int = 8  # of a prefix; M of the paper
    # all: every prefix; first_error: binary search for the first prefix of which none ends right
    # (OmegaPRM, arXiv 2406.06592).
    search: str = "all"
    temperature: float = 0.7  # 0: greedy
    top_p: float = 1.0
    max_new_tokens: int = 1024  # of a solution or completion
    # What is asked of the generator before the question; the paper's five steps where not given.
    instructions: str | None = None
    generator: str = "local"  # or openai
    local: LocalConfig = field(default_factory=LocalConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    grading: GradingConfig = field(default_factory=GradingConfig)


CHOICES = {
    "search": ("all", "first_error"),
    "generator": ("local", "openai"),
    "local.dtype": ("auto", "float64", "float32", "bfloat16"),
    "local.device": ("default", "cpu", "gpu"),
    "openai.continuation": ("prefill", "instruction", "completions"),
    "openai.max_tokens_key": ("max_tokens", "max_completion_tokens"),
    "grading.rule": RULES,
}
AT_LEAST_ONE = (
    "chains",
    "completions",
    "max_new_tokens",
    "local.batch_size",
    "openai.concurrency",
    "openai.samples_per_request",
)
MORE_THAN_ZERO = ("top_p", "openai.timeout", "grading.timeout")
NOT_NEGATIVE = (
    "seed",
    "temperature",
    "openai.retries",
    "openai.first_delay",
    "openai.longest_delay",
    "openai.image_tokens",
    "openai.prices.prompt",
    "openai.prices.completion",
    "grading.tolerance",
)

# Dicts whose keys are the user's.
_FREE = ("grading.rules", "openai.extra_body", "openai.continue_body")

# Keys that change how fast or at what cost a result is there, and not the result.
_WITHOUT_EFFECT = re.compile(
    r"out|questions|local\.(batch_size|device)"
    r"|openai\.(base_url|api_key_env|concurrency|timeout|retries|\w+_delay|image_tokens|prices\..*)"
    r"|grading\.timeout"
)


def load_annotation_config(config: str, overrides: list[str]) -> AnnotationConfig:
    """Reads the config of an annotation; see :func:`dreamprm.config.reading.read_config`."""
    return read_config(config, overrides, AnnotationConfig, _check)


def settings(config: AnnotationConfig) -> dict[str, Any]:
    """The values that the result is a function of, by their keys; of generators, the one used."""
    found: dict[str, Any] = {}
    unused = {"local": "openai", "openai": "local"}[config.generator]

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and key not in _FREE:
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif not _WITHOUT_EFFECT.fullmatch(key) and key.split(".")[0] != unused:
            found[key] = value

    walk(OmegaConf.to_container(OmegaConf.structured(config)), "")
    return found


def _check(config: Any, where: str) -> None:
    check_choices(config, where, CHOICES)
    check_numbers(config, where, 1, AT_LEAST_ONE)
    for key in MORE_THAN_ZERO:
        if not value_of(config, key) > 0:
            raise UserError(f"{where}: {key} is {value_of(config, key)}, expected more than 0")
    check_numbers(config, where, 0, NOT_NEGATIVE)
    if config.top_p > 1:
        raise UserError(f"{where}: top_p is {config.top_p}, expected at most 1")
    for domain, rule in config.grading.rules.items():
        if rule not in RULES:
            name = unknown_name(f"value of grading.rules.{domain}", str(rule), RULES)
            raise UserError(f"{where}: {name}")
    used = config.local if config.generator == "local" else config.openai
    if not used.model:
        raise UserError(f"{where} gives no value for {config.generator}.model")
    if not config.out.endswith(".jsonl"):
        raise UserError(f"{where}: out is {config.out!r}, expected a name that ends in .jsonl")
