"""The reward model: causal, independent of its batch, the same after a save, on real classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig, TinyConfig
from dreamprm.models.families import FAMILIES
from dreamprm.models.reward_model import STEP_MARKER, ProcessRewardModel
from dreamprm.models.tiny import TINY_BACKBONES

TINY = TinyConfig(width=32, layers=2, heads=2, vision_layers=2, vocabulary=300)


def rows(folder: Path, images: bool) -> list[Trajectory]:
    """Three solutions of different length; with images: two, one (larger), none."""
    paths = []
    for name, size, colour in (("a", 56, "red"), ("b", 56, "blue"), ("c", 112, "green")):
        paths.append(folder / f"{name}.png")
        Image.new("RGB", (size, 56), colour).save(paths[-1])
    pictures = [(paths[0], paths[1]), (paths[2],), ()]
    texts = [("one", "two"), ("a longer first step, with more words", "x", "y", "z"), ("alone",)]
    return [
        Trajectory(f"t{i}", "d", f"question {i}?", steps, pictures[i] if images else ())
        for i, steps in enumerate(texts)
    ]


@pytest.fixture(scope="module", params=TINY_BACKBONES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ProcessRewardModel, list[Trajectory]]:
    folder = tmp_path_factory.mktemp("images")
    data = rows(folder, images=TINY_BACKBONES[request.param] in FAMILIES)
    model = build_model(ModelConfig(request.param, tiny=TINY), data, seed=0)
    # An untrained readout is zero and would make every test below pass.
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(0))
    return model, data


def close(a: list[float], b: list[float]) -> bool:
    # Another padding means other kernels: float32 rounding through a few layers.
    return torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-5)


def test_scores_are_one_per_step_and_differ(
    case: tuple[ProcessRewardModel, list[Trajectory]],
) -> None:
    model, data = case
    scores = model.score(data)
    assert [len(s) for s in scores] == [2, 4, 1]
    flat = [x for s in scores for x in s]
    assert all(0 < x < 1 for x in flat)
    assert len({round(x, 6) for x in flat}) == 7


def test_a_later_step_cannot_change_an_earlier_score(
    case: tuple[ProcessRewardModel, list[Trajectory]],
) -> None:
    model, data = case
    long = data[1]
    changed = replace(long, steps=(*long.steps[:2], "something else, and longer", "w", "v"))
    (before,), (after,) = model.score([long]), model.score([changed])
    assert close(before[:2], after[:2])
    assert not close(before[2:3], after[2:3])
    (alone,) = model.score([replace(long, steps=long.steps[:1])])
    assert close(alone, before[:1])


def test_batch_and_padding_do_not_change_a_score(
    case: tuple[ProcessRewardModel, list[Trajectory]],
) -> None:
    model, data = case
    together = model.score(data, max_tokens=10_000)
    for row, scores in zip(data, together, strict=True):
        assert close(model.score([row])[0], scores)
    for a, b in zip(model.score(data[::-1], max_tokens=60)[::-1], together, strict=True):
        assert close(a, b)


def test_save_and_load_give_the_same_scores_without_pickle(
    case: tuple[ProcessRewardModel, list[Trajectory]], tmp_path: Path
) -> None:
    model, data = case
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "readout.safetensors", "prm.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert ProcessRewardModel.from_pretrained(tmp_path).score(data) == model.score(data)


def test_a_plain_backbone_gets_a_marker_and_a_readout(
    case: tuple[ProcessRewardModel, list[Trajectory]], tmp_path: Path
) -> None:
    model, data = case
    # A backbone as others save it, whose tokenizer has never heard of a step marker.
    model.backbone.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    if model.image_processor is not None:
        model.image_processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace(STEP_MARKER, "<|other|>"))
    assert STEP_MARKER not in AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    fresh = ProcessRewardModel.from_pretrained(tmp_path)
    assert fresh.score(data)[0] == [0.5, 0.5]
    rows_before = model.backbone.get_input_embeddings().num_embeddings
    assert fresh.backbone.get_input_embeddings().num_embeddings == rows_before + 1


def test_special_tokens_in_somebodys_text_are_text(
    case: tuple[ProcessRewardModel, list[Trajectory]],
) -> None:
    model, data = case
    placeholder = model.images.placeholder if model.images else "<|image_pad|>"
    tricky = replace(data[2], steps=(f"a {STEP_MARKER} b {placeholder}",))
    ids, positions = model.encoder().tokens(tricky)
    assert ids.count(model.tokenizer.convert_tokens_to_ids(STEP_MARKER)) == 1
    assert positions == [len(ids) - 1]
    assert len(model.score([tricky])[0]) == 1


def test_a_solution_without_steps_has_no_scores(
    case: tuple[ProcessRewardModel, list[Trajectory]],
) -> None:
    model, data = case
    assert model.score([replace(data[0], steps=()), data[1]])[0] == []
    assert model.score([]) == []


def test_images_reach_the_scores(tmp_path: Path) -> None:
    data = rows(tmp_path, images=True)
    model = build_model(ModelConfig("tiny-qwen2-vl", tiny=TINY), data, seed=0)
    torch.nn.init.normal_(model.readout.weight)
    other = replace(data[1], images=(data[0].images[0],))
    assert not close(model.score([data[1]])[0], model.score([other])[0])


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    data = rows(tmp_path, images=True)
    text_only = build_model(ModelConfig("tiny-qwen2", tiny=TINY), data, seed=0)
    with pytest.raises(UserError, match="reads text only"):
        text_only.score(data)
    with pytest.raises(UserError, match="did you mean 'tiny-qwen2-vl'"):
        build_model(ModelConfig("tiny-qwen2vl", tiny=TINY), data, seed=0)
    with pytest.raises(UserError, match="no vision tower"):
        build_model(ModelConfig("tiny-qwen2", freeze_vision=True, tiny=TINY), data, seed=0)
    with pytest.raises(UserError, match=r"there is no folder .*nothing with a model"):
        ProcessRewardModel.from_pretrained(tmp_path / "nothing")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    model = build_model(ModelConfig("tiny-qwen2-vl", tiny=TINY), data, seed=0)
    with pytest.raises(UserError, match=r"trajectory .*broken\.png is no image"):
        model.score([replace(data[0], images=(broken,))])
