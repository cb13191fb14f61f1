"""What an annotation will cost, before it starts, and what it has cost so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dreamprm.annotation.config import AnnotationConfig, PricesConfig
from dreamprm.annotation.prompt import ask
from dreamprm.annotation.questions import Question

# What is not known before: the prompt asks for five steps, and a step of about so many tokens was
# usual in solutions of the published data. English text has about four characters a token.
STEPS = 5
STEP_TOKENS = 60
CHARACTERS = 4


@dataclass
class Cost:
    """Samples and tokens.

    Attributes:
        requests: that were answered.
        samples: texts that were written.
        prompt_tokens, completion_tokens: that were read and written.
    """

    requests: int = 0
    samples: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, samples: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts one request."""
        self.requests += 1
        self.samples += samples
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def money(self, prices: PricesConfig) -> float:
        """In the currency of the prices."""
        paid = self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion
        return paid / 1e6

    def __str__(self) -> str:
        return f"{_short(self.prompt_tokens)} tokens in, {_short(self.completion_tokens)} out"


def prefixes_of(search: str, steps: int) -> int:
    """Prefixes that are completed for a solution of so many steps; for ``first_error``, at most."""
    if search == "first_error":
        return math.ceil(math.log2(steps)) if steps > 1 else 0
    return max(0, steps - 1)


def estimate(config: AnnotationConfig, questions: Sequence[Question]) -> Cost:
    """The cost of a whole annotation, taken that every solution has ``STEPS`` steps.

    For ``first_error`` it is the cost of wrong solutions; right ones cost no completion.
    """
    step = min(STEP_TOKENS, config.max_new_tokens / STEPS)
    per_request = config.openai.samples_per_request if config.generator == "openai" else 1
    prefixes = prefixes_of(config.search, STEPS)
    # Of the prefixes, halving takes those in the middle; on average, as many steps are left.
    given = STEPS / 2 * step
    cost = Cost()
    for question in questions:
        prompt = len(ask(question, config.instructions)) / CHARACTERS
        prompt += config.openai.image_tokens * len(question.images)
        requests = prefixes * math.ceil(config.completions / per_request)
        cost.requests += config.chains * (1 + requests)
        cost.samples += config.chains * (1 + prefixes * config.completions)
        cost.prompt_tokens += round(config.chains * (prompt + requests * (prompt + given)))
        completed = prefixes * config.completions * (STEPS * step - given)
        cost.completion_tokens += round(config.chains * (STEPS * step + completed))
    return cost


def describe(cost: Cost, config: AnnotationConfig, questions: int) -> str:
    """The estimate in words."""
    most = cost.samples * config.max_new_tokens
    lines = [
        f"{questions} questions, {config.chains} solutions each, {config.completions} completions "
        f"of a prefix (search: {config.search}); of {STEPS} steps, that is about",
        f"  {cost.requests:,} requests for {cost.samples:,} texts",
        f"  {cost.prompt_tokens:,} prompt tokens, {cost.completion_tokens:,} completion tokens "
        f"({STEP_TOKENS} a step; at most {most:,})",
    ]
    prices = config.openai.prices
    if config.generator == "openai" and (prices.prompt or prices.completion):
        whole = Cost(0, 0, cost.prompt_tokens, most).money(prices)
        lines.append(f"  {cost.money(prices):,.2f} in money, at most {whole:,.2f}")
    return "\n".join(lines)


def _short(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
