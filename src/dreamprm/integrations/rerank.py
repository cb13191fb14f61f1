"""The best of n samples of a server of the OpenAI protocol, by a reward model.

client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="-")
found = best_of_n(client, "Qwen/Qwen2-VL-2B-Instruct", messages, prm, n=8)
print(found.best)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dreamprm.errors import UserError, need_whole
from dreamprm.integrations.reward_function import StepReward
from dreamprm.models.reward_model import ProcessRewardModel


@dataclass(frozen=True)
class Reranked:
    """Samples and their scores.

    Attributes:
        texts: of the samples, in the order in which the server gave them.
        scores: the aggregated score of each, in [0, 1]; 0 without a step.
        choice: the index of the best one; the first of equals.
    """

    texts: list[str]
    scores: list[float]
    choice: int

    @property
    def best(self) -> str:
        """The text of the best sample."""
        return self.texts[self.choice]


def best_of_n(
    client: Any,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    reward: StepReward | ProcessRewardModel,
    n: int = 8,
    per_request: int | None = None,
    **options: Any,
) -> Reranked:
    """Samples n answers and picks the best.

    Args:
        client: an ``openai.OpenAI``.
        model: its name at the server.
        messages: the chat; the users' texts and images are the question.
        reward: a reward model, or one with an aggregation and a way to cut steps.
        n: samples.
        per_request: samples of one request; n by default. 1 for servers without the field ``n``.
        options: of the requests, e.g. ``temperature=0.8, max_tokens=1024``.

    Raises:
        UserError: n is less than 1, or the server gave no text.
    """
    need_whole("n", n, 1)
    need_whole("per_request", per_request or n, 1)
    texts: list[str] = []
    while len(texts) < n:
        count = min(per_request or n, n - len(texts))
        several = {"n": count} if count > 1 else {}
        answer = client.chat.completions.create(
            model=model, messages=list(messages), **several, **options
        )
        if not answer.choices:
            raise UserError(f"the server gave none of {count} samples of {model!r}")
        texts += [choice.message.content or "" for choice in answer.choices]
    scorer = reward if isinstance(reward, StepReward) else StepReward(reward)
    scores = scorer([messages] * len(texts), texts)
    return Reranked(texts, scores, scores.index(max(scores)))
