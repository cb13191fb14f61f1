"""What a run leaves for TensorBoard, read back from its event files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from dreamprm.cli import main
from dreamprm.data.trajectory import Candidate, SelectionQuestion, Trajectory
from dreamprm.engines.pictures import weight_bars
from dreamprm.run_directory.metrics import MetricsLog, read_metrics
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.config import ObserveConfig
from dreamprm.tasks.prm.observing import build_observer
from dreamprm.tasks.prm.pictures import scored_solutions
from tests.small_demo import SMALL_DEMO

SMALL = [
    "steps=4",
    "unroll_steps=2",
    "log_every=2",
    "validate_every=2",
    "baseline=false",
    *SMALL_DEMO,
]


def read_events(folder: Path) -> EventAccumulator:
    (file,) = (folder / "tensorboard").iterdir()
    events = EventAccumulator(str(file), size_guidance={"images": 0, "histograms": 0})
    return events.Reload()


def charts(events: EventAccumulator) -> dict[str, list[str]]:
    """The patterns of every chart, by title."""
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {c.title: list(c.multiline.tag) for g in layout.category for c in g.chart}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "demo"
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    return out


def test_all_weights_and_the_selection_have_a_chart_each(run: Path) -> None:
    events = read_events(run)
    scalars = events.Tags()["scalars"]
    patterns = charts(events)
    assert set(patterns) == {"weights", "selection (best of N)"}
    found = {
        title: {n for n in scalars if re.match(tags[0], n)} for title, tags in patterns.items()
    }
    names = load_config(str(run / "config.yaml"), []).data.synthetic.domains
    assert found["weights"] == {f"weights/{name}" for name in names}
    assert found["selection (best of N)"] == {f"validation/test_best_of_{n}" for n in (2, 4, 8)}


def test_the_numbers_are_those_of_the_metrics(run: Path) -> None:
    events = read_events(run)
    for row in read_metrics(run):
        for name, value in row.items():
            if name == "step":
                continue
            (event,) = [e for e in events.Scalars(name) if e.step == row["step"]]
            assert event.value == pytest.approx(value, rel=1e-6)


def test_every_domain_has_histograms_of_a_bounded_number_of_scores(run: Path) -> None:
    events = read_events(run)
    names = load_config(str(run / "config.yaml"), []).data.synthetic.domains
    assert set(events.Tags()["histograms"]) == {f"step_scores/{name}" for name in names}
    for name in events.Tags()["histograms"]:
        assert [event.step for event in events.Histograms(name)] == [2, 4]
        for event in events.Histograms(name):
            assert event.histogram_value.num == 8 * 4  # solutions, steps of each
            assert 0 < event.histogram_value.min <= event.histogram_value.max < 1


def test_solutions_are_drawn_at_every_validation(run: Path) -> None:
    events = read_events(run)
    assert {"weights", "scored_steps"} <= set(events.Tags()["images"])
    drawn = events.Images("scored_steps")
    assert [image.step for image in drawn] == [2, 4]
    picture = Image.open(io.BytesIO(drawn[-1].encoded_image_string)).convert("RGB")
    assert picture.width > 600
    assert len(picture.resize((200, 100)).getcolors(20_000) or []) > 20


def test_what_is_looked_at_can_be_left_out(tmp_path: Path) -> None:
    off = ["observe.questions=0", "observe.solutions=0", "observe.samples=0"]
    assert main(["demo", "--out", str(tmp_path / "run"), *SMALL, *off]) == 0
    events = read_events(tmp_path / "run")
    assert events.Tags()["histograms"] == []
    assert events.Tags()["images"] == ["weights"]
    assert not [n for n in events.Tags()["scalars"] if "best_of" in n]


def test_a_hundred_domains_are_one_event_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, charts={"weights": r"weights/.+"})
    for step in range(1, 4):
        log.write(step, {f"weights/{i}": float(i) for i in range(100)})
    log.close()
    events = read_events(tmp_path)  # of the one file that is there
    pattern = charts(events)["weights"][0]
    assert sum(bool(re.match(pattern, name)) for name in events.Tags()["scalars"]) == 100


class ByLength(torch.nn.Module):
    """Scores a step by the number of its letters."""

    def step_logits(self, rows: list[Trajectory]) -> list[list[float]]:
        return [[float(len(step)) for step in row.steps] for row in rows]


def solution(number: int, question: str, step: str, outcome: bool) -> Trajectory:
    return Trajectory(f"{number}", f"d{number % 3}", question, (step,), outcome=outcome)


def test_the_selection_is_the_expected_best_of_n() -> None:
    # The right one of four is second by score: best of random pairs is right in 2 of 6.
    words = ("aaaa", "aaa", "aa", "a")
    candidates = tuple(Candidate((w,), None, w == "aaa") for w in words)
    meta = [solution(i, f"q{i // 2}", "a" * (i % 2 + 1), i % 2 == 1) for i in range(8)]
    config = ObserveConfig(questions=5, solutions=2, samples=3)
    model: Any = ByLength()
    observer = build_observer(
        config, meta, meta, [SelectionQuestion("q", "?", candidates)], lambda row: True
    )
    assert observer.look(model) == {
        "outcome_auc": 1.0,
        "test_best_of_2": pytest.approx(2 / 6),
        "test_best_of_4": 0.0,
    }
    assert {n: len(v) for n, v in observer.histograms.items()} == {
        f"step_scores/d{i}": 2 for i in range(3)
    }
    assert set(observer.figures()) == {"scored_steps"}
    # Without a test set: the questions of the meta set that have right and wrong solutions.
    alike = [solution(9, "alike", "aa", True), solution(10, "alike", "a", True)]
    observer = build_observer(config, meta, [*meta, *alike], [], lambda row: True)
    assert len(observer.questions) == 4
    assert observer.look(model)["meta_best_of_2"] == 1.0


def test_figures_are_bounded_and_take_any_name() -> None:
    names = ["$x_", "_a", "y" * 500] + [f"d{i}" for i in range(997)]
    figure = weight_bars({name: float(i) for i, name in enumerate(names)})
    assert figure.get_figheight() < 25
    figure.canvas.draw()
    rows = [Trajectory("$i_", "d", "?", ("$\\frac{" + "long " * 300, "b"), outcome=None)]
    figure = scored_solutions(rows, [[0.1, 0.9]])
    assert figure.get_figheight() < 5
    figure.canvas.draw()
