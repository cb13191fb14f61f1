"""A reward model as a reward function in the signature of TRL's GRPOTrainer.

Three lines in a training script::

    prm = ProcessRewardModel.from_pretrained("runs/mine/model")
    reward = StepReward(prm)
    trainer = GRPOTrainer(model=policy, reward_funcs=reward, train_dataset=prompts)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dreamprm.data.steps import stripped_steps
from dreamprm.data.trajectory import Trajectory
from dreamprm.integrations.messages import Prompt, image_files, images_of, text_of
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.scoring_batches import MAX_TOKENS
from dreamprm.scoring.aggregation import aggregate, aggregation_named, probability


class StepReward:
    """Rewards a completion with the aggregated score of its steps, in [0, 1].

    Args:
        model: the reward model; it stays on its device.
        aggregation: a key of ``dreamprm.scoring.aggregation.AGGREGATIONS``.
        steps: how a completion is cut, a strategy of ``dreamprm.data.steps.split_steps``.
        max_tokens: tokens per batch, padding included.

    Raises:
        UserError: there is no such aggregation or way to cut steps.
    """

    def __init__(
        self,
        model: ProcessRewardModel,
        aggregation: str = "mean_logit",
        steps: str = "auto",
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        aggregation_named(aggregation)
        stripped_steps("", steps)
        self.model, self.aggregation = model, aggregation
        self.steps, self.max_tokens = steps, max_tokens
        self.__name__ = "step_reward"  # by which TRL logs it
        self._folder = TemporaryDirectory(prefix="dreamprm-")  # of images that are no files

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        images: Sequence[Sequence[Any] | None] | None = None,
        image: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One reward per completion; 0 for one without a step.

        Args:
            prompts: texts or messages, one per completion; of messages, the users' are what is
                asked.
            completions: texts or messages.
            images: a column of the dataset: those of each prompt, paths or PIL images.
            image: the same for a column of one each.
            columns: what else TRL passes.
        """
        folder = Path(self._folder.name)
        rows = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            given = (images[i] if images is not None else None) or ()
            if image is not None and image[i] is not None:
                given = [image[i]]
            rows.append(
                Trajectory(
                    id=str(i),
                    domain="",
                    question=text_of(prompt, roles=("user",)),
                    steps=tuple(stripped_steps(text_of(completion), self.steps)),
                    images=image_files(given, folder) or images_of(prompt, folder),
                )
            )
        logits = self.model.step_logits(rows, self.max_tokens)
        return [probability(aggregate(found, self.aggregation)) for found in logits]
