"""The reward model in other people's loops: TRL's GRPOTrainer, and a server's n samples."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from openai import OpenAI
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dreamprm import Trajectory
from dreamprm.errors import UserError
from dreamprm.integrations.rerank import best_of_n
from dreamprm.integrations.reward_function import StepReward
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.scoring.aggregation import probability
from tests.generator import save_generator
from tests.serving import Server
from tests.shared import needs_shared
from tests.test_reward_model import TINY, rows

SOLUTION = "Step 1: Two and two.\nStep 2: That is four."


def reward_model(folder: Path, name: str = "tiny-qwen2") -> ProcessRewardModel:
    model = build_model(ModelConfig(name, tiny=TINY), rows(folder, images=False), seed=0)
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    return model


def score(model: ProcessRewardModel, question: str, steps: list[str], *images: Path) -> float:
    logits = model.step_logits([Trajectory("x", "", question, tuple(steps), images)])[0]
    return probability(sum(logits) / len(logits))


def test_texts_and_messages_are_rewarded_alike(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    reward = StepReward(model)
    steps = ["Step 1: Two and two.", "Step 2: That is four."]
    expected = score(model, "What is 2 + 2?", steps)
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "What is 2 + 2?"}]
    answer = [{"role": "assistant", "content": SOLUTION}]
    found = reward(["What is 2 + 2?"] * 2, [SOLUTION, " "], completion_ids=[[1], [2]])
    assert found == pytest.approx([expected, 0.0], abs=1e-6)
    assert reward([chat], [answer], trainer_state=None) == pytest.approx([expected], abs=1e-6)
    lowest = StepReward(model, aggregation="min")([chat], [answer])
    assert lowest == pytest.approx(
        [min(model.score([Trajectory("x", "", "What is 2 + 2?", tuple(steps))])[0])]
    )
    assert lowest != pytest.approx([expected], abs=1e-9)
    for wrong in ({"aggregation": "vote"}, {"steps": "paragraph"}):
        with pytest.raises(UserError, match="unknown"):
            StepReward(model, **wrong)


def test_images_come_as_a_column_or_in_the_messages(tmp_path: Path) -> None:
    model = reward_model(tmp_path, "tiny-qwen2-vl")
    reward = StepReward(model)
    path = tmp_path / "a.png"
    expected = score(model, "Which colour?", ["Red."], path)
    assert score(model, "Which colour?", ["Red."]) != pytest.approx(expected, abs=1e-6)
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    def chat(**image: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [image, {"type": "text", "text": "Which colour?"}]}]

    with Image.open(path) as opened:
        calls: list[dict[str, Any]] = [
            {"prompts": ["Which colour?"], "images": [[str(path)]]},
            {"prompts": [chat(type="image")], "images": [[opened]]},
            {"prompts": [chat(type="image")], "image": [opened]},
            {"prompts": [chat(type="image", image=opened)]},
            {"prompts": [chat(type="image", image=opened.convert("CMYK"))]},
            {"prompts": [chat(type="image_url", image_url={"url": url})]},
        ]
        for call in calls:
            found = reward(completions=["Red."], **call)
            assert found == pytest.approx([expected], abs=1e-6)
    with pytest.raises(UserError, match="is a link"):
        reward([chat(type="image_url", image_url={"url": "https://example.org/a.png"})], ["Red."])


@needs_shared
def test_grpo_trains_on_it(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    save_generator(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder)
    seen: list[float] = []

    class Watched(StepReward):
        def __call__(self, *args: Any, **columns: Any) -> list[float]:
            found = super().__call__(*args, **columns)
            seen.extend(found)
            return found

    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "2 + 2?"}]}] * 4)
    trainer = GRPOTrainer(
        model=policy,
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=Watched(reward_model(tmp_path)),
        train_dataset=prompts,
        args=GRPOConfig(
            output_dir=str(tmp_path / "grpo"),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            max_steps=1,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
        ),
    )
    trainer.train()
    (logged,) = [row for row in trainer.state.log_history if "rewards/step_reward/mean" in row]
    assert len(seen) == 4
    assert logged["rewards/step_reward/mean"] == pytest.approx(sum(seen) / 4, abs=1e-6)
    assert 0 < sum(seen) < 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    save_generator(server.folder / "generator")
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()


@needs_shared
def test_a_servers_samples_are_reranked(server: Server, tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="-")
    chat = [{"role": "user", "content": "Solve. What is 2 + 2?"}]
    # This server refuses the field n.
    found = best_of_n(
        client, server.model, chat, model, n=3, per_request=1, temperature=1.5, max_tokens=12
    )
    assert len(found.texts) == len(found.scores) == 3
    assert found.scores == StepReward(model)([chat] * 3, found.texts)
    assert found.scores[found.choice] == max(found.scores)
    assert found.best == found.texts[found.choice]


def test_as_few_requests_as_the_server_allows(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def create(**request: Any) -> Any:
        asked.append(request)
        texts = ["", SOLUTION, "One."][: request.get("n", 1)]
        message = [SimpleNamespace(message=SimpleNamespace(content=text)) for text in texts]
        return SimpleNamespace(choices=message)

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    chat = [{"role": "user", "content": "What is 2 + 2?"}]
    found = best_of_n(client, "m", chat, reward_model(tmp_path), n=5, per_request=3, seed=1)
    assert [request.get("n") for request in asked] == [3, 2]
    assert all(request["seed"] == 1 for request in asked)
    assert found.texts == ["", SOLUTION, "One.", "", SOLUTION]
    assert found.scores[0] == found.scores[3] == 0.0
    assert found.scores[1] == pytest.approx(found.scores[4], abs=1e-6)
    with pytest.raises(UserError, match="n is 0"):
        best_of_n(client, "m", chat, reward_model(tmp_path), n=0)
