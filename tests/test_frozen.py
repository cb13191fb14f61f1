"""A frozen backbone: its states are those of a whole pass, are computed once, and stay apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dreamprm import load_config, train
from dreamprm.cli import main
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models import frozen as frozen_module
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig, TinyConfig
from dreamprm.models.frozen import StateEncoder, compute_states, freeze, some_states
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.problems.prm import DomainWeighting
from tests.small_demo import SMALL_DEMO
from tests.test_families import varied

TINY = TinyConfig(32, 3, 2, 2, 300)
ASKED = "How much is it?"
TEXT = [
    Trajectory("1", "d", ASKED, ("one step", "another"), step_labels=(1.0, None), outcome=True),
    Trajectory("2", "d", ASKED, ("one step", "and then", "yet another"), outcome=False),
    Trajectory("3", "e", "And this?", ("a step",), step_labels=(0.5,)),
]


@pytest.fixture(autouse=True)
def _own_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DREAMPRM_CACHE", str(tmp_path / "cache"))


def built(rows: list[Trajectory], **changes: Any) -> ProcessRewardModel:
    config = replace(ModelConfig("tiny-qwen2", tiny=TINY), **changes)
    model = build_model(config, rows, seed=0)
    for p in model.readout.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    return model


def counted(model: ProcessRewardModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The solutions of every batch that its backbone still runs."""
    calls: list[int] = []
    run = model.step_states

    def watched(items: Any, *rest: Any) -> Any:
        calls.append(len(items))
        return run(items, *rest)

    monkeypatch.setattr(model, "step_states", watched)
    return calls


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"readout": "vocabulary"},
        {"readout": "network", "widths": [8], "layers": [1, -1]},
        {"layers": [2]},
    ],
)
def test_scores_are_those_of_a_whole_pass(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, frozen = built(TEXT, **changes), built(TEXT, freeze_backbone=True, **changes)
    expected = whole.step_logits(TEXT)
    calls = counted(frozen, monkeypatch)
    found = frozen.step_logits(TEXT)
    again = frozen.step_logits([*TEXT, *TEXT])
    for rows in zip(expected, found, again[:3], again[3:], strict=True):
        for other in rows[1:]:
            assert other == pytest.approx(rows[0], rel=2e-6, abs=1e-5)  # of up to 73, in float32
    assert [calls[0], sum(calls)] == [3, 3]  # the second time nothing ran
    another = built(TEXT, freeze_backbone=True, **changes)
    calls = counted(another, monkeypatch)
    assert another.step_logits(TEXT) == again[:3]
    assert sum(calls) == 0  # nor in another process


def test_a_solution_that_stands_twice_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(TEXT, freeze_backbone=True)
    calls = counted(model, monkeypatch)
    compute_states(model, [*TEXT, *TEXT])
    assert sum(calls) == 3


@pytest.mark.parametrize("name", ["tiny-qwen2-vl"])
def test_solutions_with_images_too(name: str, tmp_path: Path) -> None:
    data = varied(tmp_path)
    whole, frozen = built(data, backbone=name), built(data, backbone=name, freeze_backbone=True)
    for expected, found in zip(whole.step_logits(data), frozen.step_logits(data), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_batches_that_are_left_out_change_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_module, "READ_AT_ONCE", 2)
    model = built(TEXT, freeze_backbone=True)
    whole = [(batch.rows, found) for batch, found in model.scored_batches(TEXT)]
    assert [rows for rows, _ in whole] == [[0, 1], [2]]
    rest = [(batch.rows, found) for batch, found in model.scored_batches(TEXT, done={0, 1})]
    assert rest == whole[1:]


def test_a_damaged_file_of_states_is_named() -> None:
    model = built(TEXT, freeze_backbone=True)
    compute_states(model, TEXT)
    assert model.store is not None
    (file,) = model.store.folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"cannot read .*they are made again where the file"):
        built(TEXT, freeze_backbone=True)


def test_a_batch_of_states_is_that_of_the_encoder() -> None:
    whole, frozen = built(TEXT), built(TEXT, freeze_backbone=True)
    compute_states(frozen, TEXT)
    assert frozen.store is not None
    encoder = whole.encoder(["d", "e"])
    batch, states = encoder(TEXT), StateEncoder(encoder, frozen.store)(TEXT)
    assert set(batch) - set(states) == {"inputs", "step_rows", "step_positions"}
    for name in set(batch) & set(states):
        assert torch.allclose(batch[name].float(), states[name].float(), equal_nan=True)
    logits, mask = whole(batch), batch["step_mask"]
    assert torch.allclose(frozen(states)[mask], logits[mask], atol=1e-5)
    frozen(states)[mask].sum().backward()
    assert all(p.grad is not None for p in frozen.parameters())


def test_the_readout_alone_is_trained_saved_in_checkpoints_and_moved() -> None:
    frozen = built(TEXT, freeze_backbone=True)
    assert {name for name, _ in frozen.named_parameters()} == {"readout.weight", "readout.bias"}
    assert set(frozen.state_dict()) == {"readout.weight", "readout.bias"}
    frozen.train()
    assert not frozen.backbone.training


def test_what_changes_the_states_has_others() -> None:
    folders = set()
    for changes in ({}, {"layers": [1]}, {"step_marker": "?"}, {"tiny": replace(TINY, heads=4)}):
        store = built(TEXT, freeze_backbone=True, **changes).store
        assert store is not None
        folders.add(store.folder)
    for precision in ("fp32", "bf16"):
        model = built(TEXT)
        freeze(model, precision)
        assert model.store is not None
        folders.add(model.store.folder)
    assert len(folders) == 5
    same = built(TEXT, freeze_backbone=True, readout="network").store
    assert same is not None
    assert same.folder in folders  # what is done with the states does not matter


def test_the_backbone_may_run_in_another_precision_than_the_readout(tmp_path: Path) -> None:
    words = [*SMALL_DEMO, "steps=5", "validate_every=5", "baseline=false"]
    words += ["model.freeze_backbone=true", "model.frozen_precision=bf16"]
    assert main(["demo", *words, "--out", str(tmp_path / "run")]) == 0
    model = ProcessRewardModel.from_pretrained(tmp_path / "run" / "model")
    assert model.settings["frozen"]["precision"] == "bf16"
    half, whole = (built(TEXT, freeze_backbone=True, frozen_precision=p) for p in ("bf16", None))
    apart = torch.tensor(half.step_logits(TEXT[0:1])) - torch.tensor(whole.step_logits(TEXT[0:1]))
    assert 0 < apart.abs().max() < 1
    with pytest.raises(UserError, match=r"needs model\.freeze_backbone=true"):
        load_config("demo", ["model.frozen_precision=bf16"])


def test_the_text_that_ends_a_step_may_be_a_token_that_is_there() -> None:
    model = built(TEXT, freeze_backbone=True, step_marker="?")
    ids, places = model.encoder().tokens(TEXT[0])
    (expected,) = model.tokenizer.encode("?", add_special_tokens=False)
    assert [ids[place] for place in places] == [expected] * 2
    assert len(model.tokenizer) == len(built(TEXT).tokenizer) - 1


def test_a_saved_model_scores_as_it_did_and_names_its_backbone(tmp_path: Path) -> None:
    plain = built(TEXT)
    plain.backbone.save_pretrained(tmp_path / "base")
    plain.tokenizer.save_pretrained(tmp_path / "base")
    model = built(
        TEXT, backbone=str(tmp_path / "base"), freeze_backbone=True, readout="network", layers=[2]
    )
    expected = model.step_logits(TEXT)
    model.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert "model.safetensors" not in names
    loaded = ProcessRewardModel.from_pretrained(tmp_path / "saved")
    for found, right in zip(loaded.step_logits(TEXT), expected, strict=True):
        assert found == pytest.approx(right, abs=1e-5)
    assert loaded.base == str(tmp_path / "base")
    other = built(TEXT)
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    other.backbone.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="another backbone"):
        ProcessRewardModel.from_pretrained(tmp_path / "saved")


def test_a_backbone_that_is_nowhere_else_is_saved_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(TEXT, freeze_backbone=True)
    model.save_pretrained(tmp_path)
    expected = model.step_logits(TEXT)
    loaded = ProcessRewardModel.from_pretrained(tmp_path)
    calls = counted(loaded, monkeypatch)
    for found, right in zip(loaded.step_logits(TEXT), expected, strict=True):
        assert found == pytest.approx(right, abs=1e-5)
    assert sum(calls) == 0


def test_what_was_computed_before_an_interrupt_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(TEXT, freeze_backbone=True)
    run = model.states

    batches: list[Any] = []

    def interrupted(batch: Any) -> Any:
        batches.append(batch)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return run(batch)

    monkeypatch.setattr(model, "states", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.step_logits(TEXT, max_tokens=40)
    again = built(TEXT, freeze_backbone=True)
    assert again.store is not None
    known = [row in again.store for row in TEXT].count(True)
    assert known == len(batches[0]["step_mask"]) < 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.lora.rank=2"], r"model\.lora\.rank is 2"),
        (["model.gradient_checkpointing=true"], "gradient_checkpointing"),
        (["lower.max_tokens=600", "data.sampling=proportional"], "max_tokens"),
        (["model.frozen_precision=fp16"], r"unknown value of model\.frozen_precision 'fp16'"),
        (["model.widths=[3]"], "for model.readout=network"),
        (["model.widths=[0]", "model.readout=network"], "expected 1 and more"),
    ],
)
def test_what_means_nothing_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("demo", ["model.freeze_backbone=true", *words])


@pytest.mark.parametrize("layers", [[0], [4], [-4], ["x"]])
def test_layers_that_are_not_there_are_refused(layers: list[Any]) -> None:
    with pytest.raises(UserError, match="expected 1 to 3, or -3 to -1"):
        built(TEXT, layers=layers)


def test_readouts_without_anything_to_train_are_refused() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        built(TEXT, readout="generative", freeze_backbone=True)
    with pytest.raises(UserError, match="reads what the vocabulary head does"):
        built(TEXT, readout="vocabulary", layers=[1])


@pytest.mark.parametrize("method", ["identity", "cg"])
def test_a_run_trains_it_resumes_and_scores(method: str, tmp_path: Path) -> None:
    words = ["model.freeze_backbone=true", "model.readout=network", "model.widths=[8]"]
    words += ["steps=10", "checkpoint_every=5", f"hypergradient={method}"]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert main(["demo", *SMALL_DEMO, *words, "--out", whole]) == 0
    assert main(["demo", *SMALL_DEMO, *words, "baseline=false", "--out", parts]) == 0
    for file in (tmp_path / "parts" / "checkpoints" / "step-10").iterdir():
        file.unlink()
    (tmp_path / "parts" / "checkpoints" / "step-10").rmdir()
    (tmp_path / "parts" / "summary.json").unlink()
    resumed = ["baseline=false", "--out", parts, "--resume"]
    assert main(["demo", *SMALL_DEMO, *words, *resumed]) == 0
    summaries = [json.loads((Path(p) / "summary.json").read_text()) for p in (whole, parts)]
    assert summaries[0]["weights"] == summaries[1]["weights"]
    assert summaries[0]["runs"]["domain_table"] == summaries[1]["runs"]["domain_table"]
    rows = tmp_path / "rows.jsonl"
    row = {"id": "a", "question": "What is it?", "steps": ["x", "y"]}
    rows.write_text(json.dumps(row) + "\n")
    assert main(["score", whole, str(rows), "--out", str(tmp_path / "scores.jsonl")]) == 0
    (line,) = map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    assert len(line["scores"]) == 2


@pytest.mark.parametrize("meta_loss", ["step_pairwise", "step_cross_entropy"])
def test_a_meta_loss_of_steps_is_of_their_labels(meta_loss: str) -> None:
    problem = DomainWeighting(
        meta_loss=meta_loss, module=nn.Linear(1, 1), optimizer=torch.optim.SGD([torch.ones(1)])
    )
    logits = torch.tensor([[2.0, -1.0], [0.5, 9.0]])
    problem.prm = lambda batch: logits  # type: ignore[assignment]
    batch = {
        "step_mask": torch.ones(2, 2, dtype=torch.bool),
        "label_mask": torch.tensor([[True, True], [True, False]]),
        "step_labels": torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        "outcome": torch.tensor([0.0, 0.0]),  # not looked at
        "question": torch.tensor([0, 0]),
    }
    found = problem.training_step(batch)["loss"].item()
    right, wrong = [2.0, 0.5], -1.0
    if meta_loss == "step_pairwise":
        terms = [math.log1p(math.exp(wrong - each)) for each in right]
    else:
        terms = [math.log1p(math.exp(-each)) for each in right]
        terms.append(math.log1p(math.exp(wrong)))
    assert found == pytest.approx(sum(terms) / len(terms))


def test_a_meta_loss_of_steps_needs_labels(tmp_path: Path) -> None:
    words = ["meta_loss=step_pairwise", "steps=10", "model.freeze_backbone=true"]
    config = load_config("demo", [*SMALL_DEMO, *words, f"out={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="the meta set has no step labels"):
        train(config)


def test_the_network_sees_every_entry_centred_and_scaled() -> None:
    model = built(TEXT, freeze_backbone=True, readout="network")
    compute_states(model, TEXT)
    assert model.store is not None
    states = some_states(model.store, TEXT)
    assert states.shape == (6, 32)
    assert some_states(model.store, TEXT, most=1).shape == (2, 32)
    readout: Any = model.readout
    readout.standardise(states)
    seen: list[torch.Tensor] = []
    readout.last.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    readout(states)
    assert torch.allclose(seen[0].mean(0), torch.zeros(32), atol=1e-5)
    assert torch.allclose(seen[0].std(0, correction=0), torch.ones(32), atol=1e-4)
    assert set(readout.state_dict()) == {"mean", "deviation", "last.weight", "last.bias"}
