"""Hyper-cleaning: files are read right, labels are wrong as asked for, the weights find them."""

from __future__ import annotations

import gzip
import logging
import runpy
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from dreamprm import load_config, train
from dreamprm.data.batches import BatchStream
from dreamprm.data.idx import read_idx
from dreamprm.errors import UserError
from dreamprm.run_directory.opening import open_run
from dreamprm.tasks.columns import Columns
from dreamprm.tasks.hyper_cleaning import build, f1, noisy_images
from dreamprm.tasks.mnist import load_images
from tests.shared import SHARED

MNIST = SHARED / "mnist"
FEW = ["train_images=20", "validation_images=10", "test_images=12"]
ORACLE = ["weighting=fixed", "weighting_options.column=clean"]
ORACLE += ["weighting_options.weights={true: 1, false: 0}"]
SMALL = ["hub=null", "steps=150", "device=cpu", "lower.learning_rate=1e-2"]


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file."""
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same wherever tests are collected


def write_mnist(folder: Path) -> dict[str, np.ndarray]:
    """40 images to train on and 12 to test on, of 4×3 pixels, in files named as MNIST's."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 12)):
        arrays[f"{part}-images-idx3-ubyte.gz"] = random.integers(0, 256, (count, 4, 3))
        arrays[f"{part}-labels-idx1-ubyte.gz"] = random.integers(0, 10, count)
    for name, array in arrays.items():
        (folder / name).write_bytes(zipped(idx(array)))
    return arrays


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path)
    found = load_images(str(tmp_path), None)
    assert found is not None
    for part, name in (("train", "train"), ("test", "t10k")):
        images = arrays[f"{name}-images-idx3-ubyte.gz"]
        expected = torch.tensor(images).reshape(-1, 12).float() / 255
        assert torch.equal(found[part].image, expected)
        assert found[part].label.tolist() == arrays[f"{name}-labels-idx1-ubyte.gz"].tolist()


IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (IMAGES, None, "No such file"),
        (IMAGES, b"not gzip", "Not a gzipped file"),
        (IMAGES, zipped(idx(np.zeros((40, 4, 3))))[:-9], "ended before"),
        (IMAGES, zipped(b""), "magic number is 0x, expected 0x00000803"),
        (IMAGES, zipped(idx(np.zeros(40))), "magic number is 0x00000801"),
        (IMAGES, zipped(idx(np.zeros((40, 4, 3)))[:11]), "ends after 11 bytes"),
        (IMAGES, zipped(idx(np.zeros((40, 4, 3)))[:-1]), "expected 40 × 4 × 3 = 480"),
        (LABELS, zipped(idx(np.zeros(39))), "40 images and 39 labels"),
        (LABELS, zipped(idx(np.full(40, 10))), "labels are 10 to 10, expected 0 to 9"),
    ],
)
def test_a_wrong_file_is_one_error(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    write_mnist(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_images(str(tmp_path), None)
    assert name in str(error.value)


def test_too_few_images_are_an_error(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    config = load_config("hyper_cleaning", [f"folder={tmp_path}", *FEW, "train_images=31"])
    with pytest.raises(UserError, match="train_images and validation_images: 41 asked for, of 40"):
        noisy_images(config)


def hub_part(images: np.ndarray, labels: np.ndarray) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
    )
    rows = {"image": list(images.astype(np.uint8)), "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


def test_the_hub_gives_what_the_folder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_mnist(tmp_path)

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        assert name == "some/mnist"
        part = {"train": "train", "test": "t10k"}[split]
        return hub_part(*(arrays[f"{part}-{kind}-ubyte.gz"] for kind in
                          ("images-idx3", "labels-idx1")))  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub, folder = load_images(None, "some/mnist"), load_images(str(tmp_path), "some/mnist")
    assert hub is not None
    assert folder is not None
    for part in ("train", "test"):
        assert torch.equal(hub[part].image, folder[part].image)
        assert torch.equal(hub[part].label, folder[part].label)


def test_another_data_set_of_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    part = hub_part(np.zeros((3, 4, 3)), np.zeros(3, int))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: part.remove_columns("label"))
    with pytest.raises(UserError, match=r"columns \['image'\], expected image and label"):
        load_images(None, "some/mnist")
    part = hub_part(np.zeros((3, 4, 3, 3)), np.zeros(3, int))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: part)
    with pytest.raises(UserError, match=r"shapes \[\(4, 3, 3\)\], expected one size, in grey"):
        load_images(None, "some/mnist")


def test_the_log_says_that_digits_take_the_place_of_mnist(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with caplog.at_level(logging.WARNING, "dreamprm"):
        data = noisy_images(load_config("hyper_cleaning", []))
    assert (len(data.train), len(data.validation), len(data.test)) == (449, 449, 899)
    assert data.train.image.shape[1] == 64
    assert "no way there" in caplog.text
    assert "scikit-learn's 1797 digits in its place, 449 for training" in caplog.text


@pytest.mark.parametrize("wrong", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_wrong_labels_is_exact(tmp_path: Path, wrong: float) -> None:
    write_mnist(tmp_path)
    given = [f"folder={tmp_path}", *FEW, "seed=3"]
    right = noisy_images(load_config("hyper_cleaning", [*given, "wrong=0"]))
    data = noisy_images(load_config("hyper_cleaning", [*given, f"wrong={wrong}"]))
    assert torch.equal(data.train.image, right.train.image)
    assert torch.equal(data.clean, data.train.label == right.train.label)
    assert int((~data.clean).sum()) == round(wrong * 20)
    for part in ("validation", "test"):
        assert torch.equal(getattr(data, part).label, getattr(right, part).label)
        assert torch.equal(getattr(data, part).image, getattr(right, part).image)


def test_no_image_is_in_two_parts(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = noisy_images(load_config("hyper_cleaning", [f"folder={tmp_path}", *FEW]))
    rows = [tuple(row) for part in (data.train, data.validation) for row in part.image.tolist()]
    assert len(set(rows)) == 30


def test_f1() -> None:
    wrong = torch.tensor([True, True, True, False, False])
    assert f1(wrong, wrong) == 1
    assert f1(torch.tensor([True, False, False, True, False]), wrong) == 2 / 5
    assert f1(~wrong, wrong) == 0
    assert f1(torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)) == 1


def run(*overrides: str) -> dict[str, float]:
    """The numbers of a run on scikit-learn's digits, without its baseline and report."""
    with TemporaryDirectory() as folder:
        config = load_config("hyper_cleaning", [*SMALL, f"out={folder}/run", *overrides])
        with open_run(Path(config.out), config, resume=False, overwrite=False) as opened:
            task = build(config, opened)
            engine = task.engine(config, Path(config.out))
            engine.config.progress = None
            engine.run()
            return task.end(engine, Path(config.out))


@cache
def plain() -> dict[str, float]:
    return run("weighting=uniform")


def test_known_right_labels_beat_all_labels() -> None:
    oracle = run(*ORACLE)
    assert "f1" not in plain()
    assert oracle["f1"] == 1
    assert oracle["accuracy"] > plain()["accuracy"] + 0.05


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_learned_weights_tell_wrong_labels(network: str) -> None:
    numbers = run(f"network={network}")
    assert numbers["f1"] > 0.85
    assert numbers["accuracy"] > run(f"network={network}", "weighting=uniform")["accuracy"] + 0.05


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {"activation": "sigmoid"}),
        (["weighting=instance_table"], {"activation": "sigmoid"}),
        (["weighting=uniform"], {}),
        (["weighting_options.hidden=9", "weighting=instance_network"], {"hidden": 9}),
    ],
)
def test_a_word_leaves_the_options_of_what_it_replaces(
    words: list[str], options: dict[str, object]
) -> None:
    assert load_config("hyper_cleaning", words).weighting_options == options


def test_a_solver_keeps_its_options_with_any_product(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "task: hyper_cleaning\nout: run\nsteps: 9\nhypergradient: neumann\n"
        "hypergradient_options: {iterations: 7}\n"
        "lower: {learning_rate: 1, batch_size: 1}\nupper: {learning_rate: 1, batch_size: 1}\n"
    )
    assert load_config(str(path), ["hypergradient=neumann+forward"]).hypergradient_options == {
        "iterations": 7
    }
    assert load_config(str(path), ["hypergradient=nystrom"]).hypergradient_options == {}


def test_a_full_batch_of_columns_is_not_copied() -> None:
    rows = Columns({"x": torch.rand(4, 2), "name": list("abcd")})
    stream = BatchStream(rows, 4, default_collate, seed=0, gather=rows.batch)
    whole, part = stream.collated(stream.indices(0)), stream.collated([3, 1])
    assert whole["x"].data_ptr() == rows.columns["x"].data_ptr()  # type: ignore[union-attr]
    assert whole["index"].tolist() == [0, 1, 2, 3]
    expected = default_collate([rows[3], rows[1]])
    assert torch.equal(part["x"], expected["x"])
    assert part["name"] == expected["name"] == ["d", "b"]
    assert part["index"].tolist() == [3, 1]


def test_weights_of_a_network_are_measured_too() -> None:
    """They are in no table: what a row counts is asked of the weighting, with its loss."""
    numbers = run("weighting=instance_network", "upper.learning_rate=0.01", "lower.batch_size=100")
    assert numbers["f1"] > 0.8


def test_a_run_says_what_was_measured(tmp_path: Path) -> None:
    config = load_config(
        "hyper_cleaning", [*SMALL, "steps=20", f"out={tmp_path}/run", "validate_every=10"]
    )
    runs = train(config)["runs"]
    assert runs["instance_table"].keys() == {"accuracy", "validation_accuracy", "f1"}
    assert runs["uniform"].keys() == {"accuracy", "validation_accuracy"}
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"validation/validation_accuracy"' in metrics
    assert '"validation/accuracy"' not in metrics  # of the test images, before the end


def test_the_benchmark_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parent.parent / "benchmarks"
    words = ["--seeds", "2", "--methods", "uniform", "identity", "--others", "betty: darts"]
    words += ["--overrides", "hub=null", "steps=20"]
    monkeypatch.setattr(sys, "argv", ["hyper_cleaning.py", *words])
    monkeypatch.syspath_prepend(str(folder))
    runpy.run_path(str(folder / "hyper_cleaning.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    uniform, identity, other = ([c.strip() for c in line.split("|")] for line in lines[-3:])
    assert (uniform[1], identity[1], other[1]) == ("uniform", "identity", "betty: darts")
    assert uniform[3] == "–"
    # betty's finite difference is the same hypergradient, and all else is the same.
    assert abs(float(identity[3].split()[0]) - float(other[3].split()[0])) < 0.01


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
def test_mnist() -> None:
    images = read_idx(MNIST / IMAGES, 3)
    assert images.shape == (60000, 28, 28)
    assert int(images.astype(np.int64).sum()) == 1_567_298_545  # the mean pixel is 33.318
    given = [f"folder={MNIST}", "steps=60"]
    uniform, learned = run(*given, "weighting=uniform"), run(*given)
    assert learned["accuracy"] > uniform["accuracy"] + 0.05
    assert learned["f1"] > 0.85
