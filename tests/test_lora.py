"""LoRA: what is trained, what a hypergradient sees, and that a saved model scores as it did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm.data.sources import load_data
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.build import build_model
from dreamprm.models.config import LoraConfig
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.config import Config
from dreamprm.tasks.prm.task import PRMEngine, build_engine

TINY = [
    "steps=4",
    "unroll_steps=2",
    "device=cpu",
    "data.synthetic.domains={a: clean, b: inverted}",
    "data.synthetic.solutions=16",
    "data.synthetic.meta=16",
    "data.synthetic.questions=2",
    "model.tiny.width=32",
    "model.tiny.layers=2",
    "model.tiny.heads=2",
    "lower.batch_size=8",
    "upper.batch_size=8",
    "lower.warmup_steps=0",
    "lower.learning_rate=1e-2",
]
LORA = ["model.lora.rank=2"]


def config(folder: Path, *overrides: str) -> Config:
    return load_config("demo", [*TINY, *LORA, f"out={folder / 'run'}", *overrides])


def engine(folder: Path, *overrides: str) -> PRMEngine:
    given = config(folder, *overrides)
    return build_engine(given, load_data(given.data, folder / "data", given.seed), folder / "run")


def perturbed(model: ProcessRewardModel) -> ProcessRewardModel:
    """Adapters start as nothing, and the readout too."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3, generator=generator)
    return model


TEXT = [Trajectory("1", "d", "How much is it?", ("one step", "another"))]


@pytest.mark.parametrize("vision", [False, True])
def test_adapters_and_readout_are_all_that_is_trained(tmp_path: Path, vision: bool) -> None:
    built = engine(tmp_path, f"model.freeze_vision={vision}", "hypergradient=t1t2")
    seen: list[int] = []
    point = built.lower._point

    def watched(*args: Any) -> Any:
        found = point(*args)
        seen.append(len(found.lower))
        return found

    built.lower._point = watched  # type: ignore[method-assign]
    before = {name: p.clone() for name, p in built.lower.module.named_parameters()}
    built.run()
    after = dict(built.lower.module.named_parameters())
    moved = {name for name, p in after.items() if not torch.equal(p, before[name])}
    trained = {name for name, p in after.items() if p.requires_grad}
    assert trained == {n for n in after if "lora_" in n or n.startswith("readout.")}
    # Without images in a batch the tower's adapters have no gradient; here all batches have some.
    assert moved == trained
    assert any("visual" in name for name in trained) != vision
    assert seen == [len(trained)] * 2
    assert len(trained) < len(after) / 1.5


@pytest.mark.parametrize("merge", [True, False])
def test_a_saved_model_scores_as_it_did(tmp_path: Path, merge: bool) -> None:
    built = config(tmp_path, f"model.lora.merge={merge}", "model.backbone=tiny-qwen2")
    model = perturbed(build_model(built.model, TEXT, 0))
    expected = model.step_logits(TEXT)
    model.save_pretrained(tmp_path / "m")
    assert model.step_logits(TEXT) == expected
    assert (tmp_path / "m" / "adapter").is_dir() is not merge
    loaded = ProcessRewardModel.from_pretrained(tmp_path / "m")
    assert not any("lora_" in name for name, _ in loaded.named_parameters())
    # float32: x(W + BA) for xW + (xA)B.
    assert torch.allclose(
        torch.tensor(loaded.step_logits(TEXT)), torch.tensor(expected), atol=1e-4, rtol=1e-4
    )
    loaded.save_pretrained(tmp_path / "again")
    assert ProcessRewardModel.from_pretrained(tmp_path / "again").step_logits(
        TEXT
    ) == loaded.step_logits(TEXT)


def test_adapters_of_a_named_backbone_are_saved_alone(tmp_path: Path) -> None:
    built = config(tmp_path, "model.lora.merge=false", "model.backbone=tiny-qwen2")
    plain = build_model(replace(built.model, lora=LoraConfig()), TEXT, 0)
    plain.save_pretrained(tmp_path / "plain")
    model = perturbed(build_model(replace(built.model, backbone=str(tmp_path / "plain")), TEXT, 0))
    model.save_pretrained(tmp_path / "m")
    assert not list((tmp_path / "m").glob("**/model.safetensors"))
    loaded = ProcessRewardModel.from_pretrained(tmp_path / "m")
    assert torch.allclose(
        torch.tensor(loaded.step_logits(TEXT)),
        torch.tensor(model.step_logits(TEXT)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_adapters_with_all_the_rest(tmp_path: Path) -> None:
    """bf16 autocast over fp32 adapters, checkpoints, accumulation and dropout, twice the same."""

    def run(folder: str) -> dict[str, torch.Tensor]:
        built = engine(
            tmp_path / folder,
            "precision=bf16",
            "model.gradient_checkpointing=true",
            "model.lora.dropout=0.1",
            "lower.accumulate=2",
            "upper.accumulate=2",
            "hypergradient_batch_size=4",
        )
        built.run()
        assert built.upper is not None
        return dict(built.lower.module.named_parameters()) | {"alpha": built.upper.module.alpha}

    first, second = run("one"), run("two")
    assert all(p.dtype == torch.float32 for p in first.values())
    assert first["alpha"].abs().min() > 0
    assert all(torch.equal(p, second[name]) for name, p in first.items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.rank=-1", "model.lora.rank is -1"),
        ("model.lora.alpha=0", "model.lora.alpha is 0"),
        ("model.lora.dropout=1", "model.lora.dropout is 1"),
        ("lower.accumulate=3", "lower.accumulate is 3, expected a divisor"),
        ("upper.accumulate=0", "upper.accumulate is 0"),
        ("hypergradient_batch_size=-1", "hypergradient_batch_size is -1"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, override)


def test_targets_that_are_not_there_are_named(tmp_path: Path) -> None:
    built = config(tmp_path, "model.lora.targets=[q_pro]", "model.backbone=tiny-qwen2")
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        build_model(built.model, TEXT, 0)


@pytest.mark.parametrize("merge", ["true", "false"])
@pytest.mark.parametrize("readout", ["vocabulary", "generative", "prefix"])
def test_adapters_go_with_every_readout(tmp_path: Path, readout: str, merge: str) -> None:
    given = config(tmp_path, f"model.readout={readout}", f"model.lora.merge={merge}").model
    model = perturbed(build_model(replace(given, backbone="tiny-llama"), TEXT, seed=0))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    # The vocabulary head is the backbone's own: frozen with it.
    assert all("lora_" in name or name.startswith("readout.") for name in trained)
    model.save_pretrained(tmp_path / "model")
    loaded = ProcessRewardModel.from_pretrained(tmp_path / "model")
    expected = model.step_logits(TEXT)[0]
    assert len({round(x, 3) for x in expected}) == 2
    assert loaded.step_logits(TEXT)[0] == pytest.approx(expected, abs=1e-4)
