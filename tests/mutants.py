"""Faults of one line, made one at a time: do the tests notice them? (``make mutants``)

The faults stand in tests/faults/, a file for each part, in the form of a diff::

    @ problems/base.py: test_accumulation test_problems_base

    -        return 1
    +        return 2

    -        a line that could be written in another way
    +        the other way
    = why nobody could notice

After ``@`` the file that the faults below are in, and the tests that should notice, the likeliest
first; a line ``?`` under a fault names other tests for it. Lines that begin with a space stay, to
tell equal lines apart. What a fault takes away must stand in the file exactly once.

A fault is killed where a test fails, or where the tests take ten times as long as without it.
Results stay in build/mutants.jsonl: a fault runs again where its file or its tests have changed
since, or all do with ``--again``; what noticed it before runs first.
"""

from __future__ import annotations

import argparse
import compileall
import configparser
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests" / "faults"
RESULTS = ROOT / "build" / "mutants.jsonl"
LEAST = 0.95  # share that must be killed of those that are not equivalent
# Most of what the tests import, once for all runs: each is a fork of this process.
PRELOAD = (
    *("torch", "torch.utils.flop_counter", "numpy", "sklearn.datasets", "matplotlib.figure"),
    *("transformers", "transformers.models.qwen2", "peft", "datasets", "tensorboard", "omegaconf"),
    *("betty.engine", "betty.problems", "hypothesis", "pytest"),
)


class TableError(Exception):
    """The table of faults does not go with the sources."""


@dataclass(frozen=True)
class Fault:
    """Some lines of a file, others in their place, and the tests that should notice.

    Attributes:
        file: relative to the root of the repository.
        old, new: whole lines.
        tests: their files.
        equivalent: why nobody could notice; empty where somebody should.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def __str__(self) -> str:
        pairs = [set(text.splitlines()) for text in (self.new, self.old)]
        changed = [
            f"{sign} {line.strip()}"
            for sign, text, other in (("-", self.old, pairs[0]), ("+", self.new, pairs[1]))
            for line in text.splitlines()
            if line not in other
        ]
        return "\n    ".join([self.file, *changed])

    def applied(self, source: str) -> str:
        """The source with the fault in it.

        Raises:
            TableError: its lines do not stand there exactly once.
        """
        whole_lines = re.compile(f"^(?={re.escape(self.old)})", re.MULTILINE)
        places = [match.start() for match in whole_lines.finditer(source)]
        if len(places) != 1:
            raise TableError(f"out of date, found {len(places)} times, expected once: {self}")
        return source[: places[0]] + self.new + source[places[0] + len(self.old) :]


def read_faults(path: Path) -> Iterator[Fault]:
    """The faults of one file of the table.

    Raises:
        TableError: it is not in the form that this module's docstring shows.
    """
    file, tests = "", tuple[str, ...]()
    for block in path.read_text().split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines and lines[0].startswith("@"):
            file, _, names = lines.pop(0)[1:].strip().partition(":")
            tests = _files(names)
        if not lines:
            continue
        parts: dict[str, list[str]] = {kind: [] for kind in " -+=?"}
        for line in lines:
            if line[0] not in parts:
                raise TableError(f"{path.name}: {line!r} begins with none of ' -+=?@#'")
            parts[line[0]].append(line[1:].strip())
        old, new = (
            "".join(f"{line[1:]}\n" for line in lines if line[0] in kinds) for kinds in (" -", " +")
        )
        if old == new or not file or not tests:
            raise TableError(f"{path.name}: changes nothing, or is of no file or tests: {block}")
        yield Fault(file, old, new, _files(" ".join(parts["?"])) or tests, " ".join(parts["="]))


def _files(names: str) -> tuple[str, ...]:
    return tuple(f"tests/{name}.py" for name in names.split())


def copy_tree(target: Path) -> dict[str, str]:
    """Copies packages, tests and benchmarks; gives the place of each folder in the copy."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["package_dir"].split("\n")
    pairs = [[part.strip() for part in line.split("=")] for line in lines if line]
    placed = {source: name.replace(".", "/") for name, source in pairs}
    placed |= {folder: folder for folder in ("tests", "benchmarks")}
    for source, place in placed.items():
        shutil.copytree(ROOT / source, target / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    # By default a .pyc goes by time and size, and a fault may change neither.
    compileall.compile_dir(target, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return placed


def run_tests(tree: Path, tests: Sequence[str], log: Path, seconds: float) -> int:
    """Starts the tests of a tree in another process; gives its number."""
    process = os.fork()
    if process:
        return process
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 70
    with suppress(BaseException):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.alarm(int(seconds))
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        import pytest

        import dreamprm

        assert Path(dreamprm.__file__).is_relative_to(tree), dreamprm.__file__
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        status = int(pytest.main([*options, f"--basetemp={log.with_suffix('.tmp')}", *tests]))
    sys.stdout.flush()
    os._exit(status)


def verdict(status: int) -> str:
    """What a finished run says: killed, survived, or that it says nothing."""
    signalled = os.WIFSIGNALED(status)
    if signalled and os.WTERMSIG(status) == signal.SIGALRM:
        return "killed"
    code = -1 if signalled else os.WEXITSTATUS(status)
    return {0: "survived", 1: "killed"}.get(code, "broken")


def digest(fault: Fault) -> str:
    """A number for a fault, the file that it is in and its tests, as they are."""
    total = hashlib.sha256(repr(fault).encode())
    for name in (fault.file, *fault.tests):
        total.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    return total.hexdigest()


def main() -> int:
    """Runs the faults that are not in the results yet, and prints what came out of all."""
    parser = argparse.ArgumentParser(description="Makes faults one at a time: do tests notice?")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only", default="", help="faults that have this in file, lines or tests")
    parser.add_argument("--list", action="store_true", help="print the faults, run nothing")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    try:
        faults = [f for path in sorted(FAULTS.iterdir()) for f in read_faults(path)]
        for fault in faults:
            fault.applied((ROOT / fault.file).read_text())
    except TableError as error:
        print(error, file=sys.stderr)
        return 2
    faults = [f for f in faults if options.only in " ".join([f.file, f.old, f.new, *f.tests])]
    if options.list:
        print("\n".join(map(str, faults)))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork inherits no threads to share work with
    for name in PRELOAD:
        importlib.import_module(name)
    keys = {digest(fault): fault for fault in faults}
    if options.again:
        RESULTS.unlink(missing_ok=True)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    found = {row["key"]: row["result"] for row in rows if row["key"] in keys}
    noticed = {row["fault"]: row["by"] for row in rows if row["by"]}
    todo = {key: f for key, f in keys.items() if not f.equivalent and key not in found}
    with tempfile.TemporaryDirectory() as folder:
        for key, result, by in _run_all(todo, noticed, Path(folder), options.jobs):
            found[key] = result
            RESULTS.parent.mkdir(exist_ok=True)
            row = {"key": key, "fault": str(keys[key]), "result": result, "by": by}
            with RESULTS.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return _report({fault: found.get(key, "equivalent") for key, fault in keys.items()})


def _run_all(
    todo: dict[str, Fault], noticed: dict[str, str], folder: Path, jobs: int
) -> Iterator[tuple[str, str, str]]:
    """Runs each fault's tests in one of several trees; first all tests without a fault.

    Args:
        todo: faults by their keys.
        noticed: for the words of a fault, the test that noticed it before.
        folder: for trees and logs.
        jobs: how many trees.

    Yields:
        the key, what came out, and the test that noticed.

    Raises:
        SystemExit: the tests fail without a fault.
    """
    from tqdm import tqdm

    if not todo:
        return
    trees = [folder / f"tree-{i}" for i in range(jobs)]
    placed = copy_tree(trees[0])
    names = sorted({name for fault in todo.values() for name in fault.tests})
    seconds = {}
    for name in tqdm(names, desc="tests without a fault", unit="file"):
        start, log = time.monotonic(), folder / "log"
        _, status = os.waitpid(run_tests(trees[0], [name], log, 3600), 0)
        seconds[name] = time.monotonic() - start
        if verdict(status) != "survived":
            print(log.read_text(), file=sys.stderr)
            raise SystemExit(f"{name} fails without a fault")
    sys.dont_write_bytecode = True
    for another in trees[1:]:
        shutil.copytree(trees[0], another)
    running: dict[int, tuple[str, Fault, int, str]] = {}
    waiting, free = list(todo.items()), list(range(jobs))
    with tqdm(total=len(todo), desc="faults", unit="fault") as bar:
        while waiting or running:
            if waiting and free:
                (key, fault), tree = waiting.pop(0), free.pop()
                path = trees[tree] / _place(placed, fault.file)
                source = path.read_text()
                path.write_text(fault.applied(source))
                limit = 30 + 10 * sum(seconds[name] for name in fault.tests)
                first = [noticed[str(fault)]] if str(fault) in noticed else []
                tests = [*first, *fault.tests]
                process = run_tests(trees[tree], tests, folder / f"{tree}.log", limit)
                running[process] = key, fault, tree, source
                continue
            process, status = os.wait()
            key, fault, tree, source = running.pop(process)
            (trees[tree] / _place(placed, fault.file)).write_text(source)
            free.append(tree)
            result, text = verdict(status), (folder / f"{tree}.log").read_text()
            by = re.search(r"^FAILED (tests/.+?)(?: - |$)", text, re.MULTILINE)
            if result != "killed":
                bar.write(f"{result}: {fault}")
            if result == "broken":
                bar.write(text[-2000:])
            bar.update()
            yield key, result, by[1] if by else ""


def _place(placed: dict[str, str], file: str) -> str:
    """Where a file of the repository is in a copy."""
    source = next(source for source in placed if file.startswith(f"{source}/"))
    return placed[source] + file[len(source) :]


def _report(results: dict[Fault, str]) -> int:
    """Prints what came out; the exit status."""
    groups: dict[str, list[Fault]] = {}
    for fault, result in results.items():
        groups.setdefault(result, []).append(fault)
    for kind in ("equivalent", "broken", "survived"):
        for fault in groups.get(kind, []):
            print(f"{kind}: {fault}", f"\n    = {fault.equivalent}" if fault.equivalent else "")
    counts = {kind: len(groups.get(kind, [])) for kind in ("killed", "survived", "broken")}
    total = sum(counts.values())
    share = counts["killed"] / total if total else 1.0
    words = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    print(f"{words}, {len(groups.get('equivalent', []))} equivalent: {100 * share:.1f} % killed")
    return 0 if share >= LEAST and not counts["broken"] else 1


if __name__ == "__main__":
    sys.exit(main())
