"""What a generator is asked and what it gives: the protocol that both of them keep."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dreamprm.annotation.config import AnnotationConfig
from dreamprm.annotation.questions import Question


@dataclass(frozen=True)
class Request:
    """Texts to sample, all from one beginning.

    Attributes:
        question: that is answered.
        chain: the number of the solution among those of its question.
        prefix: the number of its steps that are given; 0 for a whole solution.
        given: the text of those steps, with the white space that ends the last.
        samples: the numbers of the texts among those of this prefix.
    """

    question: Question
    chain: int
    prefix: int
    given: str
    samples: range

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells it from every other request of an annotation."""
        return self.question.id, self.chain, self.prefix, self.samples.start

    def seed(self, seed: int) -> int:
        """The seed of its first text, in [0, 2³¹), from the annotation's seed and the key."""
        words = "\0".join(map(str, (seed, *self.key)))
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Reply:
    """What a request gave.

    Attributes:
        texts: of its samples, without what was given.
        prompt_tokens, completion_tokens: that were read and written, as the generator counts.
    """

    texts: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int


class Generator(Protocol):
    """Answers requests, several at a time.

    Attributes:
        capacity: samples that are under way at a time.
        samples_per_request: the most samples that one request may have.
        together: whether requests that are started together share a batch, and with it the
            rounding of their numbers: then a batch of which one reply is missing is started whole.
    """

    capacity: int
    samples_per_request: int
    together: bool

    def start(self, requests: Sequence[Request]) -> None:
        """Takes requests on."""

    def finished(self) -> list[tuple[Request, Reply]]:
        """Waits for some of the requests that were started.

        Raises:
            UserError: a request cannot be answered.
        """

    def rescue(self) -> list[tuple[Request, Reply]]:
        """After an interruption: what is paid for and still comes; starts nothing more."""

    def close(self) -> None:
        """Gives back what it holds."""

    def fingerprint(self) -> dict[str, Any]:
        """What its texts are a function of besides the config, by name."""


def build_generator(config: AnnotationConfig, questions: Sequence[Question]) -> Generator:
    """The generator that a config asks for.

    Raises:
        UserError: it cannot be had, or does not take the questions' images.
    """
    # Each needs packages that take seconds to import, or that are not installed.
    if config.generator == "local":
        from dreamprm.annotation.local import LocalGenerator

        return LocalGenerator(config, questions)
    from dreamprm.annotation.openai_server import OpenAIGenerator

    return OpenAIGenerator(config, questions)
