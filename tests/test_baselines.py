"""What learned weights are held against: each as its paper has it, and by one word."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm import load_config, train
from dreamprm.cli import main
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.tasks.columns import Columns, training_rows
from dreamprm.tasks.prm.task import labelled_by_outcome
from dreamprm.tasks.reweighting import rows_of
from dreamprm.weighting import build_weighting
from dreamprm.weighting.baselines import WorstGroup
from dreamprm.weighting.selection import information
from tests.small_demo import SMALL_DEMO

ROWS = Columns({"x": torch.arange(6), "source": list("aabbbc"), "clean": [True, False] * 3})


def weights_of(name: str, losses: list[float], index: list[int], **options: Any) -> list[float]:
    module = build_weighting(name, rows_of(ROWS, "source", dict), options)
    assert module is not None
    return module({"index": torch.tensor(index)}, torch.tensor(losses)).tolist()


def test_focal_weights_are_one_minus_p_to_the_gamma() -> None:
    losses = [0.1, 1.0, 3.0]
    raw = [(1 - math.exp(-loss)) ** 2 for loss in losses]
    expected = [3 * each / sum(raw) for each in raw]
    assert weights_of("focal", losses, [0, 1, 2]) == pytest.approx(expected)
    assert weights_of("focal", [0.0, 0.0], [0, 1]) == [1, 1]


def test_the_worst_group_is_as_in_the_paper() -> None:
    module = WorstGroup(("a", "b", "c"), torch.tensor([0, 0, 1, 1, 1, 2]), rate=0.5)
    q = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    for index, losses in (([0, 1, 2], [1.0, 3.0, 0.5]), ([2, 3, 4, 0], [1.0, 2.0, 3.0, 0.1])):
        names = ["aabbbc"[i] for i in index]
        means = {
            name: sum(x for x, n in zip(losses, names, strict=True) if n == name)
            / names.count(name)
            for name in set(names)
        }
        q = {name: q[name] * math.exp(0.5 * means.get(name, 0.0)) for name in q}
        q = {name: value / sum(q.values()) for name, value in q.items()}
        of_step = torch.tensor(losses, requires_grad=True)
        weights = module({"index": torch.tensor(index)}, of_step)
        assert torch.equal(weights, module({"index": torch.tensor(index)}, of_step.detach()))
        # The weighted mean over samples is the weighted sum over groups.
        total = (weights * torch.tensor(losses)).mean().item()
        assert total == pytest.approx(sum(q[name] * mean for name, mean in means.items()))
    expected = {name: 3 * value for name, value in q.items()}
    assert module.named_weights() == pytest.approx(expected)


def test_the_oracle_knows_which_rows_are_right() -> None:
    assert weights_of("oracle", [1.0] * 4, [0, 1, 2, 3]) == [2, 0, 2, 0]
    assert weights_of("oracle", [1.0] * 2, [0, 1], values=True) == [2, 0]
    of_sources = {"column": "source", "values": ["a", "c"]}
    assert weights_of("oracle", [1.0] * 3, [0, 2, 5], **of_sources) == [2, 0, 2]
    with pytest.raises(UserError, match="no training row has source of"):
        weights_of("oracle", [1.0], [0], column="source", values=["d"])
    with pytest.raises(UserError, match="unknown column"):
        weights_of("oracle", [1.0], [0], column="quality")


@pytest.mark.parametrize("weighting", ["oracle", "focal", "worst_group"])
def test_baselines_run_are_interrupted_and_resume(weighting: str, tmp_path: Path) -> None:
    words = ["steps=60", "validate_every=60", "checkpoint_every=20", f"weighting={weighting}"]
    words += ["unreliable=5", "flipped=0.8"]
    whole = train(load_config("noisy_labels", [*words, f"out={tmp_path / 'whole'}"]))
    assert set(whole["runs"]) == {"uniform", weighting}
    if weighting == "oracle":
        assert whole["runs"]["oracle"]["accuracy"] > whole["runs"]["uniform"]["accuracy"] + 0.1
    if weighting == "worst_group":
        assert max(whole["weights"].values()) > 1.05
    out = tmp_path / "parts"
    config = load_config("noisy_labels", [*words, f"out={out}", "baseline=false"])
    train(config)
    for name in ("step-60", "step-40"):  # as if it had been killed after step 20
        folder = out / "checkpoints" / name
        if folder.exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    (out / "summary.json").unlink()
    again = train(config, resume=True)
    assert again["runs"][weighting] == whole["runs"][weighting]
    assert again["weights"] == whole["weights"]


def test_balanced_information_is_mixture_times_reliability() -> None:
    # (p (1 − p) + α) R; the third has no positive step, so that R is 1.
    steps = [[1.0, 1.0, 1.0, 1.0], [0.5, 0.0], [0.0, 0.0], [0.25, 0.75, 0.0, 0.0]]
    expected = [0.05 * 1, 0.3 * 0.5, 0.05 * 1, 0.3 * 0.5]
    assert [information(each, 0.05) for each in steps] == pytest.approx(expected)


def test_the_most_informative_rows_of_every_group_count() -> None:
    labels = [[1, 1], [1, 0], [0.1, 0], [None, None], None, [0, 0], [1, None]]
    rows = Columns({"x": torch.arange(7), "source": list("aaabbbb"), "label": labels})

    def weights(**options: Any) -> list[float]:
        module = build_weighting("balanced_information", rows_of(rows, "source", dict), options)
        assert module is not None
        return module({"index": torch.arange(7)}, torch.ones(7)).tolist()

    # In a 0.05, 0.3 and 0.03; in b 0.05 twice, the first of which is taken, and two without labels.
    assert weights() == [0, 3.5, 0, 0, 0, 3.5, 0]
    assert weights(share=0.7) == pytest.approx([7 / 3, 7 / 3, 0, 0, 0, 7 / 3, 0])
    with pytest.raises(UserError, match="share is 2, expected at most 1"):
        weights(share=2)
    numbers = rows_of(Columns({"source": list("ab"), "label": torch.arange(2)}), "source", dict)
    with pytest.raises(UserError, match="no training row has any in its label"):
        build_weighting("balanced_information", numbers, {})


def test_a_reward_model_is_trained_on_the_most_informative(tmp_path: Path) -> None:
    words = ["steps=5", "validate_every=5", "baseline=false", "weighting=balanced_information"]
    assert main(["demo", *SMALL_DEMO, *words, "--out", str(tmp_path / "run")]) == 0
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any("prm/loss" in json.loads(line) for line in metrics)


def test_the_meta_set_is_a_group_of_the_training_data() -> None:
    both = training_rows("both", ROWS, Columns({"x": torch.arange(2), "y": [1, 2]}), "source")
    assert isinstance(both, Columns)
    assert both.columns["source"] == [*"aabbbc", "meta", "meta"]
    assert both.columns["x"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert set(both.columns) == {"x", "source"}
    lists = training_rows("both", [{"x": 1, "s": "a", "z": 0}], [{"x": 2}], "s")
    assert list(lists) == [{"x": 1, "s": "a"}, {"x": 2, "s": "meta"}]
    assert list(training_rows("meta", [{"x": 1, "s": "a"}], [{"x": 2}], "s")) == [
        {"x": 2, "s": "meta"}
    ]
    of_numbers = training_rows(
        "both",
        Columns({"x": torch.arange(2), "s": torch.tensor([True, False])}),
        Columns({"x": torch.arange(1)}),
        "s",
    )
    assert isinstance(of_numbers, Columns)
    assert of_numbers.columns["s"] == ["True", "False", "meta"]
    with pytest.raises(UserError, match="not both Columns"):
        training_rows("both", ROWS, [{"x": 1}], "source")


def test_meta_solutions_are_labelled_by_their_outcome() -> None:
    rows = [
        Trajectory("r", "d", "q", ("one", "two"), outcome=True),
        Trajectory("w", "d", "q", ("one",), outcome=False),
        Trajectory("k", "d", "q", ("one", "two"), step_labels=(1.0, 0.0), outcome=False),
    ]
    assert [(r.domain, r.step_labels) for r in labelled_by_outcome(rows)] == [
        ("meta", (1.0, 1.0)),
        ("meta", (0.0,)),
        ("meta", (1.0, 0.0)),
    ]


@pytest.mark.parametrize(("train_on", "domains"), [("both", 9), ("meta", 1)])
def test_a_reward_model_is_trained_on_the_meta_set_too(
    train_on: str, domains: int, tmp_path: Path
) -> None:
    words = ["steps=10", "baseline=false", f"train_on={train_on}"]
    assert main(["demo", *SMALL_DEMO, *words, "--out", str(tmp_path / "run")]) == 0
    weights = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert len(weights) == domains
    assert "meta" in weights


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("instance_network", {"features": 3}, "features is 3, expected a list or a text"),
        ("fixed", {"weights": 3}, "weights is 3, expected keys and values or null"),
        ("fixed", {"file": 3}, "file is 3, expected a text or null"),
        ("domain_table", {"column": 3}, "column is 3, expected a text or null"),
        ("domain_table", {"bins": "x"}, "bins"),
        ("focal", {"gamma": "x"}, "gamma"),
    ],
)
def test_options_of_another_kind_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"weighting_options.{message}"):
        weights_of(name, [1.0], [0], **options)
