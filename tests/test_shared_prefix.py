"""Scoring by question and by tokens: the same scores as one at a time, for less work."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.utils import ModelOutput

from dreamprm.data.images import read_image
from dreamprm.data.trajectory import Trajectory
from dreamprm.models import encoding
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig, TinyConfig
from dreamprm.models.families import FAMILIES
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.scoring_batches import Tally, TokenBatch, token_batches
from dreamprm.models.shared_prefix import can_share_prefixes
from dreamprm.models.tiny import TINY_BACKBONES

# What a version of transformers is about to take away is not called.
pytestmark = pytest.mark.filterwarnings("error::FutureWarning")

Case = tuple[ProcessRewardModel, list[Trajectory]]


def solutions(folder: Path, images: bool) -> list[Trajectory]:
    """Six questions of several candidates and three of one, shuffled; one to four steps each."""
    pictures = []
    for name, width, colour in (("a", 56, "red"), ("b", 140, "blue"), ("c", 84, "green")):
        pictures.append(folder / f"{name}.png")
        Image.new("RGB", (width, 56), colour).save(pictures[-1])
    choices = [(pictures[0],), (pictures[1], pictures[0]), (), (pictures[2],)]
    rng = random.Random(0)
    rows = []
    for question in range(9):
        for candidate in range(1 if question > 5 else 2 + question % 4):
            # The first step is the same for all, as where every solution restates the question.
            steps = ["It asks for a number."] * (question % 2)
            steps += ["so " * rng.randint(1, 9) + str(rng.random()) for _ in range(1 + candidate)]
            shown = choices[question % 4] if images else ()
            rows.append(
                Trajectory(
                    f"{question}/{candidate}",
                    "d",
                    f"Question {question}: " + "how many? " * question,
                    tuple(steps),
                    shown,
                )
            )
    rows[0] = replace(rows[0], steps=())  # of two candidates, one has no steps
    rows.append(replace(rows[-1], id="twin"))  # two that are the same, to the last token
    rng.shuffle(rows)
    return rows


@pytest.fixture(scope="module", params=TINY_BACKBONES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    images = TINY_BACKBONES[request.param] in FAMILIES
    rows = solutions(tmp_path_factory.mktemp("images"), images=images)
    tiny = TinyConfig(width=32, layers=2, heads=2, vision_layers=1, vocabulary=300)
    model = build_model(ModelConfig(request.param, tiny=tiny), rows, seed=0)
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    return model, rows


def separately(model: ProcessRewardModel, rows: list[Trajectory]) -> list[list[float]]:
    return [model.step_logits([row])[0] for row in rows]


def prompts(model: ProcessRewardModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape of everything that the backbone runs from now on."""
    seen: list[tuple[int, int]] = []
    forward = model.backbone.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.backbone, "forward", spy)
    return seen


@pytest.mark.parametrize("max_tokens", [1, 150, 400, 100_000])
def test_shared_prefixes_do_not_change_a_score(case: Case, max_tokens: int) -> None:
    model, rows = case
    expected = separately(model, rows)
    found = model.step_logits(rows, max_tokens)
    assert [len(a) for a in found] == [len(row.steps) for row in rows]
    for a, b in zip(found, expected, strict=True):
        # float32 through two layers, in kernels of other shapes.
        assert torch.allclose(torch.tensor(a), torch.tensor(b), rtol=0, atol=1e-5)
    flat = torch.tensor([x for a in expected for x in a])
    assert flat.std() > 0.1


def test_the_cache_goes_by_the_name_that_the_backbone_gives_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers before 5.24 calls it past_key_values, and from then on cache."""
    model, rows = case
    expected = model.step_logits(rows)
    forward = model.backbone.forward

    def renamed(cache: Any = None, **inputs: Any) -> Any:
        assert "past_key_values" not in inputs
        given = {} if cache is None else {own: cache}
        found = forward(**inputs, **given)
        return ModelOutput(last_hidden_state=found.last_hidden_state, cache=found.get(own))

    own = (
        "cache"
        if "cache" in model.backbone(torch.tensor([[1]]), use_cache=True)
        else "past_key_values"
    )
    monkeypatch.setattr(model.backbone, "forward", renamed)
    assert model.step_logits(rows) == expected


def test_a_common_beginning_runs_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = case
    question = [row for row in rows if row.id.startswith("5/")]
    assert len(question) == 3
    tokens = [model.encoder().tokens(row)[0] for row in question]
    # What the three have in common: images, question and the first step with its marker.
    common = model.encoder().tokens(replace(question[0], steps=question[0].steps[:1]))[0]
    assert all(ids[: len(common)] == common for ids in tokens)
    seen = prompts(model, monkeypatch)
    model.score(question)
    (_, prefix), (candidates, own) = seen
    assert len(common) <= prefix < min(map(len, tokens))
    assert (candidates, own) == (3, max(map(len, tokens)) - prefix)
    seen.clear()
    model.score([replace(row, question=row.id) for row in question])
    assert len(seen) == 1


def test_a_pass_without_images_forgets_those_before(tmp_path: Path) -> None:
    """Qwen2-VL keeps the positions' shift of the last images, which is of no text's business."""
    rows = solutions(tmp_path, images=True)
    tiny = TinyConfig(width=32, layers=2, heads=2, vision_layers=1, vocabulary=300)
    model = build_model(ModelConfig("tiny-qwen2-vl", tiny=tiny), rows, seed=0)
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    text = [row for row in rows if row.id.startswith("2/")]
    assert len(text) > 1
    assert not text[0].images
    before = model.step_logits(text)
    model.step_logits([row for row in rows if row.id.startswith("1/")])
    assert model.step_logits(text) == before


def batches(case: Case, max_tokens: int, **options: Any) -> list[TokenBatch]:
    model, rows = case
    return list(token_batches(model.encoder(), rows, max_tokens, **{"share": True} | options))


@pytest.mark.parametrize("max_tokens", [1, 150, 400])
def test_batches_hold_everything_once_within_the_budget(case: Case, max_tokens: int) -> None:
    _, rows = case
    for share in (True, False):
        found = batches(case, max_tokens, share=share)
        assert sorted(i for batch in found for i in batch.rows) == [
            i for i, row in enumerate(rows) if row.steps
        ]
        assert all(batch.slots <= max_tokens or len(batch.rows) == 1 for batch in found)
    assert not any(batch.shared for batch in found)
    if max_tokens > 1:
        assert len(found) < len(rows)


def test_what_is_counted_is_what_the_backbone_runs(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = case
    seen = prompts(model, monkeypatch)
    tally = Tally()
    for batch, _ in model.scored_batches(rows, 400):
        tally.add(batch)
    assert tally.slots == sum(a * b for a, b in seen)
    lengths = [len(model.encoder().tokens(row)[0]) for row in rows if row.steps]
    assert tally.tokens + tally.repeated == sum(lengths)
    assert tally.solutions == len(lengths)
    assert tally.repeated > 0
    # Candidates of one question are of one to five steps here, side by side.
    assert tally.slots < 1.5 * tally.tokens
    assert f"{tally.slots:,} tokens" in str(tally)


@pytest.mark.parametrize("max_tokens", [150, 400])
def test_what_is_done_is_left_out_and_changes_nothing(case: Case, max_tokens: int) -> None:
    whole = batches(case, max_tokens)
    assert len(whole) > 5
    for finished in range(len(whole) + 1):
        done = {i for batch in whole[:finished] for i in batch.rows}
        assert batches(case, max_tokens, done=done) == whole[finished:]


def test_only_full_attention_can_share(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = case
    assert can_share_prefixes(model.backbone)
    expected = model.step_logits(rows)
    text: Any = model.backbone.config.get_text_config()
    mixed = ["full_attention", "sliding_attention"]
    monkeypatch.setattr(text, "layer_types", mixed, raising=False)  # Llama has none
    assert not can_share_prefixes(model.backbone)
    monkeypatch.undo()
    monkeypatch.setattr(text, "_attn_implementation", "flash_attention_2")
    assert not can_share_prefixes(model.backbone)
    monkeypatch.undo()
    monkeypatch.setattr("dreamprm.models.reward_model.can_share_prefixes", lambda _: False)
    seen = prompts(model, monkeypatch)
    for a, b in zip(model.step_logits(rows), expected, strict=True):
        assert torch.allclose(torch.tensor(a), torch.tensor(b), rtol=0, atol=1e-5)
    assert sum(a for a, _ in seen) == sum(bool(row.steps) for row in rows)


def test_images_that_fit_no_cache_are_read_once_for_tokens_and_once_for_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in solutions(tmp_path, images=True) if len(row.images) == 2]
    assert len(rows) > 4
    config = ModelConfig("tiny-qwen2-vl", tiny=TinyConfig(32, 1, 2, 1, 300))
    model = build_model(config, rows, seed=0)
    reads: list[Path] = []
    monkeypatch.setattr(encoding, "IMAGE_CACHE_BYTES", 1)
    monkeypatch.setattr(encoding, "read_image", lambda path: reads.append(path) or read_image(path))
    list(model.scored_batches(rows, 10**6))
    questions = len({row.question for row in rows})
    assert sorted(map(reads.count, set(reads))) == [1 + questions] * 2
