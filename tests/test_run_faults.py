"""What goes wrong around a run, as its user meets it: one message, nothing lost or half made."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamprm.cli import main
from dreamprm.config.reading import save_config
from dreamprm.errors import UserError
from dreamprm.models.reward_model import ProcessRewardModel
from dreamprm.run_directory.metrics import MetricsLog, read_metrics
from dreamprm.tasks.modules import load_config

MODEL = [
    *("device=cpu", "model.backbone=tiny-qwen2", "model.tiny.width=32", "model.tiny.heads=2"),
    *("model.tiny.layers=1", "lower.learning_rate=1e-3", "upper.learning_rate=0.1"),
    *("lower.batch_size=4", "upper.batch_size=4", "data.images=ignore", "baseline=false"),
    *("unroll_steps=1", "log_every=1", "validate_every=2"),
]


def write_sets(folder: Path) -> None:
    folder.mkdir()
    row = {"domain": "d", "question": "q?", "steps": ["one", "two"], "step_labels": [0.5, 1]}
    sets = {
        "train": [row | {"id": "a"}, row | {"id": "b", "domain": "e", "question": "r?"}],
        "meta": [
            row | {"id": str(n), "question": f"{n}?", "outcome": n % 2 == 0} for n in range(4)
        ],
    }
    for name, rows in sets.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)


# Trains two steps in the folder "run" of the working directory, on the sets beside it.
TRAIN = [
    *("train", "tiny.yaml", *MODEL, "steps=2", "out=run"),
    *("data.train=[data/train.jsonl]", "data.meta=[data/meta.jsonl]"),
]
RUN = Path("run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a finished run on them."""
    folder = tmp_path_factory.mktemp("made")
    write_sets(folder / "data")
    (folder / "tiny.yaml").write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(TRAIN) == 0
    return folder


@pytest.fixture
def finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of that folder, in another place."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def message(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int = 2) -> str:
    assert main(arguments) == status
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("dreamprm: ")
    return last


def in_child(work: Callable[[], int], errors: Path) -> int:
    """Does work in a fork, whose standard error goes to a file; its status."""
    process = os.fork()
    if process == 0:
        status = 99
        try:
            torch.set_num_threads(1)  # a fork inherits no threads to share work with
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            status = work()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("more", [[], ["seed=5"]])
@pytest.mark.usefixtures("finished")
def test_overwrite_deletes_nothing_before_the_new_run_starts(
    capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    before = contents(RUN)
    assert "data.max_tokens" in message(capsys, [*TRAIN, "--overwrite", "data.max_tokens=1", *more])
    assert contents(RUN) == before


def test_overwrite_keeps_built_in_data_until_the_new_run_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    sizes = ["solutions=6", "meta=8", "questions=2", "candidates=3"]
    demo = ["train", "demo", *MODEL, "steps=1", f"out={out}"]
    demo += [f"data.synthetic.{size}" for size in sizes]
    assert "data.max_tokens" in message(capsys, [*demo, "data.max_tokens=1"])
    assert not out.exists()
    assert main(demo) == 0
    before = contents(out)
    failing = [*demo, "--overwrite", "seed=3", "data.max_tokens=1"]
    assert "data.max_tokens" in message(capsys, failing)
    now = contents(out)
    assert {name: now.get(name) for name in before} == before
    assert all(name.startswith("synthetic/images/") for name in now.keys() - before.keys())
    assert main([*demo, "--overwrite", "seed=3"]) == 0
    assert contents(out)["synthetic/test.jsonl"] != before["synthetic/test.jsonl"]


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row | {"step_labels": [1 - label for label in row["step_labels"]]},
        lambda row: row | {"steps": row["steps"][::-1]},
    ],
    ids=["labels inverted", "steps reversed"],
)
@pytest.mark.usefixtures("finished")
def test_resuming_on_changed_data_is_refused(
    capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    path, before = Path("data/train.jsonl"), contents(RUN)
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = message(capsys, [*TRAIN, "--resume"])
    assert "are not those that the run was begun with: other training data;" in refused
    assert contents(RUN) == before


def test_resuming_on_moved_data_goes_on(finished: Path, tmp_path: Path) -> None:
    shutil.move("data", tmp_path / "moved")
    named = [f"data.{name}=[{tmp_path}/moved/{name}.jsonl]" for name in ("train", "meta")]
    before = contents(RUN)["weights.json"]
    assert main([*TRAIN, *named, "--resume"]) == 0
    assert contents(RUN)["weights.json"] == before


def test_of_two_that_resume_at_once_one_is_refused(finished: Path, tmp_path: Path) -> None:
    resume = [*TRAIN, "steps=6", "out=both", "--resume"]
    write = MetricsLog.write

    def wait_and_write(self: MetricsLog, step: int, values: dict[str, float]) -> None:
        write(self, step, values)
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.01)

    def patient() -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MetricsLog, "write", wait_and_write)
            return main(resume)

    first = os.fork()
    if first == 0:
        os._exit(in_child(patient, tmp_path / "errors-1"))
    deadline = time.monotonic() + 60
    while not Path("begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = in_child(lambda: main(resume), tmp_path / "errors-2")
    Path("go").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
    assert second == 2
    assert "both is being written to by process" in (tmp_path / "errors-2").read_text()
    steps = [row["step"] for row in read_metrics(Path("both")) if "prm/loss" in row]
    assert steps == list(range(1, 7))


def test_torchrun_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = message(capsys, ["train", "no-such-config"])
    assert "WORLD_SIZE is 2: torchrun has started" in refused


@pytest.mark.parametrize(
    "content", [b"\x80\x04\x95\xff\x00", b"\x00\x01", b"", b"steps: [1"], ids=repr
)
@pytest.mark.usefixtures("finished")
def test_a_damaged_config_is_one_message(
    capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (RUN / "config.yaml").write_bytes(content)
    assert main([*TRAIN, "--resume"]) == 2
    printed = capsys.readouterr().err
    assert "dreamprm: run/config.yaml " in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("arguments", [[*TRAIN, "--resume"], ["report", "run"]], ids=" ".join)
@pytest.mark.usefixtures("finished")
def test_damaged_metrics_are_one_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    lines = (RUN / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (RUN / "metrics.jsonl").write_bytes(lines[0] + b'{"step": "\xe9"}\n')
    assert "run/metrics.jsonl:2: not UTF-8 text" in message(capsys, arguments)


@pytest.mark.usefixtures("finished")
def test_a_run_whose_folder_is_removed_ends_with_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = MetricsLog.write

    def remove_and_write(self: MetricsLog, step: int, values: dict[str, float]) -> None:
        shutil.rmtree("gone", ignore_errors=True)
        write(self, step, values)

    monkeypatch.setattr(MetricsLog, "write", remove_and_write)
    assert "gone was removed or replaced" in message(capsys, [*TRAIN, "out=gone"])
    assert not Path("gone").exists()


# Sizes that the disk takes of a file: none of the lock, the config, TensorBoard's, the model.
@pytest.mark.parametrize("size", [10, 100, 2500])
def test_a_full_disk_is_one_message(finished: Path, tmp_path: Path, size: int) -> None:
    before = contents(RUN)

    def train() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return main([*TRAIN, "out=full"])

    errors = tmp_path / "errors"
    errors.write_bytes(b"")
    assert in_child(train, errors) == 2, errors.read_text()
    assert not list(Path().rglob("*.tmp"))
    if size < 1000:
        assert not Path("full").exists()
    assert contents(RUN) == before


def test_a_full_disk_leaves_no_half_model(made: Path, tmp_path: Path) -> None:
    model = ProcessRewardModel.from_pretrained(made / "run" / "model")
    folder, errors = tmp_path / "model", tmp_path / "errors"
    for size in (5, 3_000, 20_000):

        def save(size: int = size) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                model.save_pretrained(folder)
            except UserError as error:
                said = str(error)
                full = said.startswith(f"cannot write {folder}: ") and "File too large" in said
                return 2 if full else 3
            return 0

        assert in_child(save, errors) == 2
        assert list(tmp_path.iterdir()) == [errors]
    model.save_pretrained(folder)
    before = contents(folder)
    (folder / "README.md").write_text("mine")
    model.save_pretrained(folder)
    assert contents(folder) == before | {"README.md": b"mine"}


def test_a_folder_that_is_read_only_is_one_message(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(made, folder / "copy")
    monkeypatch.chdir(folder / "copy")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        for more in (["--resume"], ["--overwrite"], ["out=other/run"]):
            printed = message(capsys, [*TRAIN, *more])
            assert "cannot write " in printed
            assert "Permission denied" in printed
    finally:
        os.seteuid(before)
    assert contents(folder / "copy") == contents(made)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def listed_to(output: int) -> Callable[[], int]:
    def work() -> int:
        os.dup2(output, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        return main(["hypergradients", "--list"])

    return work


def test_after_head_the_command_ends_quietly(tmp_path: Path) -> None:
    reading, output = os.pipe()
    os.close(reading)
    assert in_child(listed_to(output), tmp_path / "errors") == 128 + signal.SIGPIPE
    assert (tmp_path / "errors").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_is_full_is_one_message(tmp_path: Path) -> None:
    output = os.open("/dev/full", os.O_WRONLY)
    assert in_child(listed_to(output), tmp_path / "errors") == 1
    expected = "dreamprm: cannot write to standard output: No space left on device\n"
    assert (tmp_path / "errors").read_text() == expected


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("out=${oc.env:DREAMPRM_SECRET}", "computes a value or reads the environment"),
        ("out=a/${oc.env:DREAMPRM_SECRET,b}/c", "computes a value or reads the environment"),
        (r"out=\${oc.env:DREAMPRM_SECRET}", "out is '${oc.env:DREAMPRM_SECRET}', expected a value"),
        ("hypergradient_options.alpha=${oc.decode:1}", "hypergradient_options.alpha is '${oc."),
        ("seed=${oc.create:3}", "seed is '${oc.create:3}', which computes"),
        ("steps=${nope}", "'steps=${nope}': steps: Interpolation key 'nope' not found"),
        ("hypergradient_options.alpha=${.beta}", "hypergradient_options.alpha: Interpolation key"),
        ("steps=${steps}", "steps: Recursive interpolation detected"),
        ("steps=${out}", "steps: While dereferencing interpolation '${out}'"),
        ("steps=${seed", "cannot be read"),
        ("data=${model}", "ModelConfig is not a subclass of DataConfig"),
    ],
)
@pytest.mark.parametrize("way", ["override", "file"])
def test_interpolations_that_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    said: str,
    way: str,
) -> None:
    monkeypatch.setenv("DREAMPRM_SECRET", "do-not-read")
    config = tmp_path / "config.yaml"
    lines = ["model: {backbone: tiny-qwen2}", "lower: {batch_size: 4, learning_rate: 0.1}"]
    lines += ["upper: {batch_size: 4, learning_rate: 0.1}", "seed: 1", "steps: 1"]
    key, _, value = override.partition("=")
    *above, name = key.split(".")
    if way == "file":
        lines = [line for line in lines if not line.startswith(f"{name}:")]
        text = f"{name}: '{value}'"
        lines.append(f"{above[0]}: {{{text}}}" if above else text)
    config.write_text("\n".join(lines) + "\n")
    more = [override] if way == "override" else []
    out = [] if key == "out" else ["out=x"]
    printed = message(capsys, ["train", str(config), *out, *more])
    assert "do-not-read" not in printed
    if way == "override":
        assert said in printed
    else:
        assert f"dreamprm: {config}: " in printed
        assert key in printed or key == "data"


def test_plain_interpolations_stay(tmp_path: Path) -> None:
    found = load_config("demo", ["steps=7", "out=runs/${steps}-${lower.batch_size}"])
    assert found.out == f"runs/7-{found.lower.batch_size}"
    save_config(found, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml"), []) == found
