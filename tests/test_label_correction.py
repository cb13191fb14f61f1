"""Labels in the place of weights: their hypergradient, their bounds, what a run makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from dreamprm import load_config, train
from dreamprm.data.batches import BatchStream
from dreamprm.data.table import TrajectoryTable
from dreamprm.engines.base import EngineConfig
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.errors import UserError
from dreamprm.hypergradients import METHODS
from dreamprm.hypergradients.interface import STEPS
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.reweighting import ReweightedProblem, WeightingProblem
from dreamprm.tasks import Columns
from dreamprm.tasks.corrections import corrections
from dreamprm.tasks.reweighting import rows_of
from dreamprm.weighting import build_weighting
from dreamprm.weighting.labels import Classes, LabelTable
from tests.small_demo import SMALL_DEMO

COUNT, WIDTH = 24, 3
BY_ROWS = [name for name, method in METHODS.items() if STEPS not in method.needs]
LISTS = [[0.25, None, 1.0], [0.5], [0.0, 0.75]]


class Fit(ReweightedProblem):
    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return (self(batch["x"]).squeeze(-1) - batch["label"]).square()


class Judge(WeightingProblem):
    """Keeps its last v and its gradient."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.model(batch["x"]).squeeze(-1) - batch["label"]).square().mean()

    def grad_callback(self) -> None:
        self.kept = self.module.alpha.grad.clone()
        self.sparse = self.module.alpha.grad.is_sparse
        x, y = self.batches[0]["x"], self.batches[0]["label"]
        with torch.no_grad():
            self.vector = 2 * x.T @ (self.model(x).squeeze(-1) - y) / len(x)


def columns(seed: int) -> Columns:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(COUNT, WIDTH, generator=random, dtype=torch.float64)
    y = (x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)).sigmoid()
    return Columns({"x": x, "label": 1 - y if seed == 1 else y})


def table_of(train: Any, **options: Any) -> LabelTable:
    found = build_weighting("label_table", rows_of(train, "x", dict), options)
    assert isinstance(found, LabelTable)
    return found


def fitted(
    folder: Path,
    method: str,
    *,
    steps: int = 6,
    size: int = 8,
    rate: float = 5.0,
    by_rows: bool = True,
    **options: Any,
) -> ReweightingEngine:
    """A line without an offset and its labels, after some steps."""
    torch.manual_seed(0)
    module = nn.Linear(WIDTH, 1, bias=False).double()
    table = table_of(columns(1)).double()
    table.by_rows = by_rows
    engine = ReweightingEngine(
        Fit(
            config=ProblemConfig(type=method, options=options, unroll_steps=2),
            module=module,
            optimizer=torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0),
            train_data_loader=BatchStream(columns(1), size, default_collate, 1),
        ),
        Judge(
            config=ProblemConfig(),
            module=table,
            optimizer=torch.optim.SGD(table.parameters(), lr=rate),
            train_data_loader=BatchStream(columns(2), COUNT, default_collate, 2),
        ),
        EngineConfig(train_iters=steps, run_directory=folder, strategy="cpu"),
    )
    engine.run()
    return engine


@pytest.mark.parametrize(
    ("method", "options"),
    [("identity", {}), ("cg", {"iterations": WIDTH}), ("cg+forward", {"iterations": WIDTH})],
)
def test_the_hypergradient_is_the_written_out_formula(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """dM/dy = (2/n) X q of L = |Xφ − y|²/n, with q = v, or q = H⁻¹v and H = (2/n) XᵀX."""
    engine = fitted(tmp_path, method, steps=2, size=COUNT, rate=1e-9, **options)
    (batch,) = engine.lower.batches
    x, q = batch["x"], engine.upper.vector
    if method != "identity":
        q = torch.linalg.solve(2 / COUNT * x.T @ x, q)
    found = engine.upper.kept.to_dense()[batch["index"]]
    assert found.abs().max() > 1e-3
    # Float64, and as many iterations of cg as there are variables: sums in another order.
    torch.testing.assert_close(found, 2 / COUNT * x @ q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [*BY_ROWS, "cg+forward"])
def test_by_rows_is_the_whole_table(method: str, tmp_path: Path) -> None:
    options = {"rank": 3} if method == "nystrom" else {}
    some = fitted(tmp_path / "some", method, **options).upper
    whole = fitted(tmp_path / "whole", method, by_rows=False, **options).upper
    assert some.sparse
    assert not whole.sparse
    moved = (whole.module.alpha - table_of(columns(1)).double().alpha).abs().max()
    assert moved > 1e-3
    torch.testing.assert_close(
        some.module.alpha, whole.module.alpha, rtol=0, atol=float(moved) * 1e-6
    )


@pytest.mark.parametrize("by_rows", [True, False])
def test_labels_stay_between_0_and_1(by_rows: bool, tmp_path: Path) -> None:
    upper = fitted(tmp_path, "identity", rate=1e3, by_rows=by_rows, steps=12).upper
    labels = upper.module.alpha.detach()
    assert labels.min() == 0
    assert labels.max() == 1


def test_probabilities_stay_probabilities() -> None:
    table = table_of(Columns({"label": torch.tensor([2, 0, 1])}), classes=4)
    assert table.row_labels() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    table.alpha.data = torch.tensor([[-1.0, 3.0, 1.0, 0.0], [-1.0, -2.0, 0.0, -1.0], [0, 1, 0, 0]])
    table.project()
    assert table.row_labels() == [[0, 0.75, 0.25, 0], [0.25] * 4, [0, 1, 0, 0]]
    # A gradient is of one class against those that the label has: none along the label itself.
    raw = table.alpha.detach().double().requires_grad_()
    (Classes().read(raw) * torch.arange(4)).sum().backward()
    torch.testing.assert_close((raw.grad * raw).sum(-1), torch.zeros(3, dtype=torch.float64))


def test_lists_of_labels_are_cut_to_the_batch_and_keep_what_is_missing() -> None:
    table = table_of([{"label": values} for values in LISTS])
    assert table.alpha.shape == (3, 3)
    assert table.row_labels() == LISTS
    batch = {"index": torch.tensor([2, 1]), "label": torch.full((2, 2), 9.0), "x": 0}
    found = table.corrected(batch)
    assert found["label"].tolist() == [[0.0, 0.75], [0.5, 0.0]]
    assert found["x"] == 0
    assert batch["label"].eq(9).all()
    assert table(batch, torch.tensor([3.0, 4.0])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0.5, 1.5], {}, "training row '1': label has 1.5, expected numbers from 0 to 1"),
        ([0.5, "a"], {}, "label has 'a', expected numbers"),
        ([[0.5], [None]], {}, "training row '1' has no label to correct"),
        ([1, -1], {}, "label is -1, expected 0 to 1"),
        ([1, 3], {"classes": 3}, "label is 3, expected 0 to 2"),
        ([0.5], {"column": "labl"}, "did you mean 'label'"),
    ],
)
def test_what_is_no_label_is_refused(
    labels: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        table_of([{"label": each} for each in labels], **options)


def test_a_batch_without_the_labels_is_refused() -> None:
    with pytest.raises(UserError, match="no entry 'label'"):
        table_of([{"label": 0.5}]).corrected({"index": torch.tensor([0])})


def test_other_bounds() -> None:
    table = table_of([{"label": -2.5}, {"label": 7.0}], low=-3, high=float("inf"))
    table.alpha.data = torch.tensor([-4.0, 100.0])
    table.project()
    assert table.alpha.tolist() == [-3, 100]


def test_corrections_are_counted() -> None:
    labels = [
        ([0.9, 0.1, None, 0.6], [0.4, 0.4, None, 0.7]),  # set right, right, –, right
        ([0.2, 0.8], [0.1, 0.45]),  # stays wrong, led astray
        ([0.2], [0.9]),  # not known
        ([0.5, 0.9], [0.1, 0.8]),  # on no side, neither as given nor as it should be
        (2, [0.1, 0.6, 0.3]),  # set right
        (0, [0.5, 0.2, 0.3]),  # right
        (0.7, 0.2),  # beyond the end
    ]
    truth = [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0], None, [1.0, 0.5], 1, 0]
    assert corrections(labels, truth) == {
        "wrong_labels": 3 / 7,
        "set_right": 2 / 3,
        "led_astray": 1 / 4,
    }
    assert set(corrections([], []).values()) == {None}


DIGITS = ["weighting=label_table", "upper.weight_decay=0", "baseline=false", "device=cpu"]


def test_wrong_digits_are_set_right(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (numbers,) = train(load_config("noisy_labels", [*DIGITS, f"out={out}"]))["runs"].values()
    assert numbers["set_right"] > 0.6
    assert numbers["led_astray"] < 0.1
    lines = [json.loads(line) for line in (out / "labels.jsonl").open()]
    assert [line["id"] for line in lines] == list(map(str, range(1097)))
    assert all(abs(sum(line["corrected"]) - 1) < 1e-5 for line in lines)


def test_an_interrupted_run_goes_on_the_same(tmp_path: Path) -> None:
    words = [*DIGITS, "steps=60", "validate_every=60", "checkpoint_every=20"]
    whole = train(load_config("noisy_labels", [*words, f"out={tmp_path / 'whole'}"]))
    out = tmp_path / "parts"
    config = load_config("noisy_labels", [*words, f"out={out}"])
    train(config)
    for name in ("step-60", "step-40"):  # as if it had been killed after step 20
        shutil.rmtree(out / "checkpoints" / name, ignore_errors=True)
    (out / "summary.json").unlink()
    (out / "labels.jsonl").unlink()
    assert train(config, resume=True)["runs"] == whole["runs"]
    assert (out / "labels.jsonl").read_text() == (tmp_path / "whole" / "labels.jsonl").read_text()


def test_step_labels_of_the_built_in_domains(tmp_path: Path) -> None:
    """The truth of a clean domain is its labels, of an inverted one the other side."""
    words = ["weighting=label_table", "steps=4", "unroll_steps=2", "upper.learning_rate=1e-6"]
    config = load_config(
        "demo",
        [*SMALL_DEMO, *words, "baseline=false", "device=cpu", f"out={tmp_path / 'run'}"],
    )
    numbers = train(config)["runs"]["label_table"]
    assert 1 / 3 < numbers["wrong_labels"] < 2 / 3
    assert numbers["set_right"] == numbers["led_astray"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "labels.jsonl").open()]
    assert len(lines) == 8 * 24
    pairs = [zip(line["given"], line["corrected"], strict=True) for line in lines]
    moved = [abs(a - b) for pair in pairs for a, b in pair]
    assert 0 < max(moved) < 1e-4
    assert "set right" in (tmp_path / "run" / "report.html").read_text()


def test_a_table_of_trajectories_knows_its_step_labels() -> None:
    from dreamprm.data.trajectory import Trajectory

    rows = [Trajectory("a", "d", "q", ("x", "y"), step_labels=(0.5, None))]
    assert TrajectoryTable.of(rows).column("step_labels") == [(0.5, None)]
