"""The shipped configs of published methods: their names, and that they do what they say."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from dreamprm import load_config, train
from dreamprm.config.reading import shipped_configs, shipped_runs
from dreamprm.data.adapters.visualprm import write_conversations
from dreamprm.data.formats import load_trajectories
from dreamprm.data.trajectory import Trajectory
from dreamprm.problems.prm import DomainWeighting, PRMFineTuning
from dreamprm.run_directory.metrics import read_metrics
from dreamprm.tasks.prm.step_network import StepNetwork
from tests.shared import SHARED
from tests.test_readouts import CHAT, save_with_head

META = SHARED / "dreamprm15_meta_sample.json"
needs_meta = pytest.mark.skipif(not META.is_file(), reason=f"there is no {META}")


def test_the_shipped_configs_are_listed_without_torch() -> None:
    program = (
        "import sys; from dreamprm.cli import main\n"
        "try: main(['train', '--list'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "False\n")
    lines = dict(line.split(maxsplit=1) for line in found.stdout.splitlines())
    assert lines == shipped_runs()
    assert set(shipped_configs()) - set(lines) == {"annotate"}  # of another command
    for line in lines.values():
        assert line[0].isupper()
        assert line.endswith(".")


class Fixed(torch.nn.Module):
    """Step logits that are parameters."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.logits


LOGITS = [[2.0, -1.0, 0.5], [1.5, 9.0, 9.0]]
STEPS = torch.tensor([[True, True, True], [True, False, False]])


def test_the_meta_loss_is_of_the_right_token_s_mean_probability() -> None:
    problem = DomainWeighting(meta_loss="probability_mse")
    problem.prm = Fixed(LOGITS)
    outcome = torch.tensor([0.0, 1.0], dtype=torch.float64)
    batch = {"step_mask": STEPS, "outcome": outcome, "question": torch.arange(2)}
    plus = torch.tensor(LOGITS, dtype=torch.float64).sigmoid()
    right_token = [(1 - plus[0]).mean(), plus[1, 0]]
    expected = sum((1 - each).square() for each in right_token) / 2
    found = problem.training_step(batch)
    assert found["loss"].item() == pytest.approx(float(expected), rel=1e-12)
    assert found["accuracy"].item() == 0.5  # the first one's mean logit is above 0


def test_the_network_sees_the_probabilities_of_the_steps_alone() -> None:
    network = StepNetwork(10)
    scores = torch.tensor(LOGITS).sigmoid()
    found = network({"step_scores": scores, "step_mask": STEPS}, torch.zeros(2))

    def of_step(p: torch.Tensor) -> torch.Tensor:
        first, _, last = network.network
        hidden = torch.nn.functional.leaky_relu(first.weight @ torch.stack([p, 1 - p]) + first.bias)
        return last.weight[0] @ hidden + last.bias[0]

    expected = [torch.stack([of_step(p) for p in scores[0]]).mean().sigmoid()]
    expected += [of_step(scores[1, 0]).sigmoid()]
    assert torch.allclose(found, torch.stack(expected))
    # What it sees gives the reward model no gradient: the loss is linear in the weights' losses.
    problem = PRMFineTuning(module=Fixed(LOGITS), step_loss="cross_entropy")
    labels = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    batch = {"step_mask": STEPS, "label_mask": STEPS, "step_labels": labels}
    batch["domain"] = torch.arange(2)
    problem.fixed = network
    problem.training_step(batch)["loss"].backward()
    gradient = problem.module.logits.grad.clone()
    weights = network({**batch, "step_scores": scores}, torch.zeros(2)).double().detach()
    problem.module.logits.grad = None
    (weights * problem.sample_losses(batch)).mean().backward()
    assert torch.allclose(gradient, problem.module.logits.grad)
    assert network.network[0].weight.grad is not None
    assert "step_scores" not in batch


def published_rows(folder: Path) -> tuple[list[Trajectory], Path]:
    """Published meta rows without images, and training rows of their steps with random signs."""
    meta = load_trajectories(META, "dreamprm15", images="ignore")[:40]
    draw = random.Random(0)
    signs = [tuple(float(draw.random() < 0.5) for _ in row.steps) for row in meta]
    signed = [replace(row, step_labels=each) for row, each in zip(meta, signs, strict=True)]
    path = folder / "train.json"
    path.write_text(json.dumps(list(write_conversations(signed, folder))))
    return meta, path


@needs_meta
@pytest.mark.parametrize("name", ["dreamprm_1_5_table", "dreamprm_1_5_net"])
def test_dreamprm_1_5_runs_on_the_published_meta_rows(name: str, tmp_path: Path) -> None:
    rows, path = published_rows(tmp_path)
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    save_with_head(backbone, rows, "tiny-llama", tied=True)
    AutoTokenizer.from_pretrained(backbone, chat_template=CHAT).save_pretrained(backbone)
    words = [f"model.backbone={backbone}", f"data.train=[{path}]", f"data.meta=[{META}]"]
    words += ["data.images=ignore", "steps=8", "cold_start=4", "precision=fp32"]
    words += ["lower.warmup_steps=1", "upper.warmup_steps=1", "log_every=1", "validate_every=8"]
    words += ["observe.questions=2"]
    out = tmp_path / "run"
    summary = train(load_config(name, [*words, f"out={out}"]))
    assert summary["meta_loss"] == "probability_mse"
    logged = [row for row in read_metrics(out) if "prm/loss" in row]
    plain = [row["prm/loss"] == pytest.approx(row["prm/unweighted_loss"]) for row in logged]
    if name == "dreamprm_1_5_table":
        weights = json.loads((out / "weights.json").read_text())
        assert len(weights) == 40
        assert all(-1 <= value <= 3 for value in weights.values())
        assert len(set(weights.values())) > 1
        assert all(plain[:5])
    else:
        assert plain[:4] == [True] * 4
        assert not any(plain[4:])
    assert [row["step"] for row in logged if "weighting/loss" in row] == list(range(5, 9))


def test_meta_weight_net_weights_by_one_lower_step(tmp_path: Path) -> None:
    config = load_config("meta_weight_net", ["steps=20", f"out={tmp_path / 'run'}"])
    assert (config.hypergradient, config.unroll_steps) == ("unrolled", 1)
    summary = train(config)
    assert list(summary["runs"]) == ["uniform", "instance_network"]
    assert summary["weights"] == {}
    logged = [row for row in read_metrics(tmp_path / "run") if "model/loss" in row]
    assert logged[-1]["model/loss"] != pytest.approx(logged[-1]["model/unweighted_loss"])
