"""A selection that is killed again and again, against one that nobody interrupts.

    python benchmarks/select_killed.py --questions 1250 --candidates 8 --kills 3

Prints one JSON line: whether the two outputs are equal to the last byte, and how often each
solution went through the model in the killed one, by its journal before every kill and at its end.
The model is a Qwen2 of random weights, its readout included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from dreamprm.data.formats import save_questions
from dreamprm.data.trajectory import Candidate, SelectionQuestion
from dreamprm.models.reward_model import STEP_MARKER, ProcessRewardModel
from dreamprm.models.tiny import tiny_backbone, tiny_tokenizer

STEPS, DIGITS = 4, 12  # of a solution, of a step


def write_inputs(folder: Path, questions: int, candidates: int, width: int, layers: int) -> None:
    """A reward model in ``model``, and ``questions.jsonl``."""
    rng = random.Random(0)

    def step() -> str:
        return "".join(rng.choices("0123456789", k=rng.randint(1, 2 * DIGITS)))

    save_questions(
        folder / "questions.jsonl",
        [
            SelectionQuestion(
                f"q{number}",
                f"{number} {step()}",
                tuple(
                    Candidate(tuple(step() for _ in range(STEPS)), str(rng.randint(0, 5)), None)
                    for _ in range(candidates)
                ),
            )
            for number in range(questions)
        ],
    )
    tokenizer = tiny_tokenizer(["0123456789"], 300, STEP_MARKER)
    backbone = tiny_backbone("tiny-qwen2", tokenizer, width, layers, 2, layers, seed=0)
    model = ProcessRewardModel(backbone, tokenizer)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.readout.weight, std=width**-0.5, generator=generator)
    model.save_pretrained(folder / "model")


def start(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, in a process of its own."""
    files = [str(folder / "model"), str(folder / "questions.jsonl"), "--out", str(out)]
    command = [sys.executable, "-m", "dreamprm.cli", "select", *files, "--resume"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def batches(partial: Path) -> list[list[str]]:
    """The solutions in each whole line of a journal."""
    if not partial.exists():
        return []
    lines = partial.read_bytes().split(b"\n")[:-1]
    return [list(json.loads(line)) for line in lines[1:]]


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description="a selection killed and resumed")
    parser.add_argument("--questions", type=int, default=1250)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options.questions, options.candidates, options.width, options.layers)
        whole, out = folder / "whole.jsonl", folder / "killed.jsonl"
        begun = time.perf_counter()
        assert start(folder, whole).wait() == 0
        seconds = time.perf_counter() - begun
        # A hard link sees the journal to its end, though the command deletes its name.
        partial, witness = Path(f"{out}.partial"), folder / "journal"
        killed_after = []
        for kill in range(options.kills + 1):
            process = start(folder, out)
            before = len(batches(partial))
            share = options.questions * options.candidates * (kill + 1) / (options.kills + 1)
            while process.poll() is None:
                done = batches(partial)
                if partial.exists() and not witness.exists():
                    os.link(partial, witness)
                if kill < options.kills and len(done) > before and sum(map(len, done)) >= share:
                    process.kill()
                    process.wait()
                    killed_after.append(sum(map(len, batches(partial))))
                time.sleep(0.01)
        passes = Counter(row for batch in batches(witness) for row in batch)
        line = {
            "candidates": options.questions * options.candidates,
            "seconds_uninterrupted": round(seconds, 1),
            "killed_after": killed_after,
            "same_bytes": out.read_bytes() == whole.read_bytes(),
            "scored": len(passes),
            "scored_more_than_once": sum(count > 1 for count in passes.values()),
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
