"""Features of a frozen vision tower are computed once, and change nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm.data.sources import load_data
from dreamprm.data.trajectory import Trajectory
from dreamprm.hypergradients.products import DoubleBackward, ForwardMode
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig, TinyConfig
from dreamprm.models.families import family_of
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.models.vision_cache import FeatureCache, cache_features
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.task import build_engine
from tests.test_families import reweighted, varied, with_images

FROZEN = ModelConfig(
    "tiny-qwen2-vl", freeze_vision=True, vision_cache_gb=0.1, tiny=TinyConfig(32, 1, 2, 2, 300)
)


def cache_of(model: ProcessRewardModel) -> FeatureCache:
    return tower_of(model).forward.args[3]


def tower_of(model: ProcessRewardModel) -> Any:
    family = family_of(model.backbone.config)
    assert family is not None
    return model.backbone.get_submodule(family.tower)


def build(config: ModelConfig, data: list[Trajectory]) -> ProcessRewardModel:
    model = build_model(config, data, seed=0)
    torch.nn.init.normal_(model.readout.weight, generator=torch.Generator().manual_seed(1))
    return model


def pair(config: ModelConfig, data: list[Trajectory]) -> tuple[ProcessRewardModel, ...]:
    """The same model with a cache and without."""
    return build(config, data), build(replace(config, vision_cache_gb=0.0), data)


@pytest.mark.parametrize("name", with_images())
def test_scores_and_gradients_are_those_without_it(name: str, tmp_path: Path) -> None:
    data = varied(tmp_path)
    cached, plain = pair(replace(FROZEN, backbone=name), data)
    batch = plain.encoder()(data)
    gradients = []
    for model in (cached, plain, cached):
        logits = model(batch)
        loss = logits.square().sum()
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients.append([logits, *torch.autograd.grad(loss, trained, allow_unused=True)])
    for found, expected in zip(gradients[0], gradients[1], strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for again, found in zip(gradients[2], gradients[0], strict=True):
        assert found is None or torch.equal(again, found)


@pytest.mark.parametrize("name", with_images())
def test_hypergradients_are_those_without_it(name: str, tmp_path: Path) -> None:
    data = varied(tmp_path)
    cached, plain = pair(replace(FROZEN, backbone=name), data)
    batch = plain.encoder()(data)
    loss, lower, upper, q = reweighted(plain.double(), _double(batch))
    (exact,) = DoubleBackward(loss, lower, upper).cross(q)
    loss, lower, upper, q = reweighted(cached.double(), _double(batch))
    for product in (ForwardMode, DoubleBackward, ForwardMode):
        (found,) = product(loss, lower, upper).cross(q)
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=0.0)
    assert (exact.abs() > 1e-6).all()
    assert cache_of(cached).computed == units(batch)


def test_features_do_not_depend_on_the_batch_or_on_who_asks_first(tmp_path: Path) -> None:
    data = varied(tmp_path)
    alone, together = build(FROZEN, data), build(FROZEN, data)
    encode = alone.encoder()
    for row in data:
        with torch.inference_mode():
            alone(encode([row]))
    loss, lower, upper, q = reweighted(together, encode(data))
    ForwardMode(loss, lower, upper).cross(q)
    left, right = (
        {k: list(v.values()) for k, v in cache_of(m)._features.items()} for m in (alone, together)
    )
    assert left.keys() == right.keys()
    assert len(left) == 5
    assert all(torch.equal(a, b) for k in left for a, b in zip(left[k], right[k], strict=True))
    # What inference mode has computed can be trained on.
    alone(encode(data)).sum().backward()


def test_every_image_is_computed_once_and_memory_is_bounded(tmp_path: Path) -> None:
    data = varied(tmp_path)
    model = build(FROZEN, data)
    encode, cache = model.encoder(), cache_of(model)
    for _ in range(3):
        model(encode([*data, *data]))
    assert cache.computed == 5
    of_all, first = cache.bytes, next(iter(cache._features.values())).pooler_output.nbytes
    small = build(replace(FROZEN, vision_cache_gb=(of_all - 1) / 2**30), data)
    encode, cache = small.encoder(), cache_of(small)
    for _ in range(3):
        small(encode(data))
    assert first <= cache.bytes <= of_all - 1
    held = sum(v.pooler_output.nbytes for v in cache._features.values())
    assert cache.bytes == held
    assert cache.computed == 5 + 2 * (5 - len(cache._features))


def test_other_weights_and_other_precision_are_other_features(tmp_path: Path) -> None:
    data = varied(tmp_path)
    model, plain = pair(FROZEN, data)
    batch = plain.encoder()(data)
    before = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = plain(batch)
        torch.testing.assert_close(model(batch), half, rtol=0.02, atol=0.02)
    assert torch.equal(model(batch), before)
    for each in (model, plain):
        with torch.no_grad():
            next(tower_of(each).parameters()).mul_(3.0)
    assert (plain(batch) - before).abs().max() > 1e-3
    torch.testing.assert_close(model(batch), plain(batch))
    for each in (model, plain):
        each.double()
    torch.testing.assert_close(model(_double(batch)), plain(_double(batch)))


def test_a_tower_that_is_trained_after_all_is_not_cached(tmp_path: Path) -> None:
    data = varied(tmp_path)
    model, plain = pair(FROZEN, data)
    batch = plain.encoder()(data)
    model(batch)
    for each in (model, plain):
        tower_of(each).requires_grad_(True)
        each(batch).sum().backward()
    for found, expected in zip(
        tower_of(model).parameters(), tower_of(plain).parameters(), strict=True
    ):
        assert expected.grad is not None
        assert expected.grad.abs().max() > 0
        torch.testing.assert_close(found.grad, expected.grad)
    loss, lower, upper, q = reweighted(model.double(), _double(batch))
    (found,) = ForwardMode(loss, lower, upper).cross(q)
    loss, lower, upper, q = reweighted(plain.double(), _double(batch))
    torch.testing.assert_close(found, DoubleBackward(loss, lower, upper).cross(q)[0])


def test_weights_that_are_lent_for_one_call_are_other_features(tmp_path: Path) -> None:
    data = varied(tmp_path)
    model, plain = pair(FROZEN, data)
    batch = plain.encoder()(data)
    names = [name for name, p in model.named_parameters() if not p.requires_grad]
    flat = torch.cat([model.get_parameter(name).flatten() for name in names]).detach()
    for factor in (1.0, 1.5, 2.0, 2.5):
        # Views of a new tensor each time, which may lie where the last one's were.
        views = (flat * factor).split([model.get_parameter(name).numel() for name in names])
        lent = {n: v.view_as(model.get_parameter(n)) for n, v in zip(names, views, strict=True)}
        del views
        found, expected = (torch.func.functional_call(m, lent, (batch,)) for m in (model, plain))
        torch.testing.assert_close(found, expected)
        del lent
    torch.testing.assert_close(model(batch), plain(batch))


def test_a_run_computes_every_image_once(tmp_path: Path) -> None:
    """Hypergradients lend copies of all buffers, which are no other weights."""
    config = load_config(
        "demo",
        [
            "steps=12",
            "unroll_steps=2",
            "lower.batch_size=8",
            "model.freeze_vision=true",
            "data.synthetic.solutions=10",
            "data.synthetic.meta=20",
            "data.synthetic.questions=2",
            f"out={tmp_path}",
        ],
    )
    data = load_data(config.data, tmp_path, 0)
    engine = build_engine(config, data, tmp_path / "run")
    engine.run()
    cache = cache_of(engine.lower.module)
    rows = [*data.train, *data.meta, *data.test]  # the validations look at test questions, too
    images = {path.read_bytes() for row in rows for path in row.images}
    assert len(cache._features) == cache.computed <= len(images)
    assert cache.computed > 40


def test_a_copy_is_of_its_own_tower(tmp_path: Path) -> None:
    data = varied(tmp_path)
    model, plain = pair(FROZEN, data)
    batch = plain.encoder()(data)
    before = model(batch)
    copied, expected = copy.deepcopy(model).double(), copy.deepcopy(plain).double()
    torch.testing.assert_close(copied(_double(batch)), expected(_double(batch)))
    assert torch.equal(model(batch), before)


def test_names_are_kept_and_dropout_is_not_cached(tmp_path: Path) -> None:
    data = varied(tmp_path)
    model, plain = pair(FROZEN, data)
    assert list(model.state_dict()) == list(plain.state_dict())
    family = family_of(plain.backbone.config)
    assert family is not None
    tower_of(plain).drop = torch.nn.Dropout(0.1)
    assert cache_features(plain.backbone, family, 100) is None


def units(batch: dict[str, Any]) -> int:
    """What the tower sees one at a time: images of Qwen-VL, tiles of the others."""
    inputs = batch["inputs"]
    if "image_grid_thw" in inputs:
        return len(inputs["image_grid_thw"])
    pixels = inputs["pixel_values"]
    tiles = pixels.flatten(0, 1) if pixels.dim() == 5 else pixels
    return len({tile.numpy().tobytes() for tile in tiles if tile.abs().max() > 0})


def _double(batch: dict[str, Any]) -> dict[str, Any]:
    """Its images in float64."""
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in batch["inputs"].items()}
    return batch | {"inputs": inputs}
