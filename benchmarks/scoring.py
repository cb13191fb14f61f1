"""How fast solutions are scored: the section "Scoring" of docs/benchmarks.md.

    python benchmarks/scoring.py shared_pass shared_prefix

Prints JSON lines, each with a ratio measured side by side in one process: medians of repeated
rounds, in which the two ways take turns. ``shared_pass``: all steps of a solution in one pass,
against a pass for every prefix of it. ``shared_prefix``: the candidates of a question continuing
from one prefix, against a pass over every whole candidate in one batch. ``image_prefix``: the same
with an image in the question. Each line says how far the scores of the two ways are apart.

On a CPU the model is a Qwen2-VL or Qwen2 of width 384 with 4 layers; with ``--device cuda`` it is
Qwen2-VL-2B by its config, in bf16, with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import Setting, config_of
from PIL import Image
from transformers import Qwen2VLModel

from dreamprm.data.trajectory import Trajectory
from dreamprm.models.families import QWEN_TOKENS
from dreamprm.models.reward_model import STEP_MARKER, ProcessRewardModel
from dreamprm.models.tiny import tiny_backbone, tiny_image_processor, tiny_tokenizer

Scores = list[list[float]]

STEPS = 5
PATCH = 28  # pixels of an image token's side


def reward_model(name: str, options: argparse.Namespace) -> ProcessRewardModel:
    """A reward model of random weights, readout included."""
    # Text of digits alone: every character is a token, so lengths are exact.
    tokenizer = tiny_tokenizer(["0123456789"], 300, STEP_MARKER)
    if options.device == "cuda":
        ids = {key: tokenizer.convert_tokens_to_ids(word) for key, word in QWEN_TOKENS.items()}
        with torch.device("cuda"):
            backbone: torch.nn.Module = Qwen2VLModel(config_of(Setting("cuda", 0, 0, 0), ids))
        name = "tiny-qwen2-vl"  # of the image processor
    else:
        backbone = tiny_backbone(
            name, tokenizer, options.width, options.layers, options.heads, options.layers, seed=0
        )
    processor = tiny_image_processor(name, backbone, 10**7)
    model = ProcessRewardModel(backbone, tokenizer, processor).to(options.device).eval()
    torch.nn.init.normal_(model.readout.weight, std=model.readout.weight.shape[1] ** -0.5)
    if options.device == "cuda":
        model.backbone.bfloat16()
    return model


def solutions(
    options: argparse.Namespace, candidates: int, prompt: int, image: Path | None = None
) -> list[Trajectory]:
    """Candidates for one question, with so many tokens of prompt (images included) and solution."""
    generator = torch.Generator().manual_seed(1)

    def digits(count: int) -> str:
        return "".join(map(str, torch.randint(10, (count,), generator=generator).tolist()))

    taken = 2  # the blank line
    if image is not None:
        with Image.open(image) as opened:
            taken += opened.width * opened.height // PATCH**2 + 2
    question = digits(prompt - taken)
    step = options.solution // STEPS - 1  # and its marker
    return [
        Trajectory(
            f"c{candidate}",
            "",
            question,
            tuple(digits(step) for _ in range(STEPS)),
            () if image is None else (image,),
        )
        for candidate in range(candidates)
    ]


def side_by_side(
    options: argparse.Namespace, ways: dict[str, Callable[[], Scores]]
) -> dict[str, Any]:
    """Seconds of each way, the ratio of the second to the first, and how far apart they score."""
    scores = {name: way() for name, way in ways.items()}  # a round to warm up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()  # ends in a copy to the host, which waits for the device
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fast, slow = medians
    ratios = [b / a for a, b in zip(seconds[fast], seconds[slow], strict=True)]
    steps = sum(map(len, scores[fast]))
    apart = max(
        abs(a - b)
        for ours, theirs in zip(scores[fast], scores[slow], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "steps_per_second": {name: round(steps / value, 1) for name, value in medians.items()},
        "scores_apart": float(f"{apart:.1e}"),
    }


def shared_pass(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All steps of a solution in one pass, against a pass for every prefix."""
    model = reward_model("tiny-qwen2", options)
    rows = solutions(options, options.candidates, options.prompt)
    # Questions of their own: what is measured here is not the prefix that they would share.
    rows = [replace(row, question=row.question[:-1] + str(i)) for i, row in enumerate(rows)]
    prefixes = [
        replace(row, steps=row.steps[: count + 1]) for row in rows for count in range(STEPS)
    ]

    def by_prefix() -> Scores:
        with patch("dreamprm.models.reward_model.can_share_prefixes", lambda _: False):
            last = [scores[-1] for scores in model.score(prefixes)]
        return [last[i : i + STEPS] for i in range(0, len(last), STEPS)]

    ways = {"one_pass": lambda: model.score(rows), "prefix_by_prefix": by_prefix}
    yield {"comparison": "shared_pass", **side_by_side(options, ways)}


def shared_prefix(
    options: argparse.Namespace, image: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Candidates that continue from one prefix, against whole candidates in one batch."""
    model = reward_model("tiny-qwen2" if image is None else "tiny-qwen2-vl", options)
    rows = solutions(options, options.candidates, options.prompt, image)
    assert len(model.encoder().tokens(rows[0])[0]) == options.prompt + options.solution

    def separate() -> Scores:
        with patch("dreamprm.models.reward_model.can_share_prefixes", lambda _: False):
            return model.score(rows)

    ways = {"shared": lambda: model.score(rows), "separate": separate}
    name = "shared_prefix" if image is None else "image_prefix"
    yield {"comparison": name, **side_by_side(options, ways)}


def image_prefix(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Shared prefixes with an image of 256 tokens in the question."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        Image.effect_noise((16 * PATCH, 16 * PATCH), 50).convert("RGB").save(path)
        yield from shared_prefix(options, path)


COMPARISONS = {
    "shared_pass": shared_pass,
    "shared_prefix": shared_prefix,
    "image_prefix": image_prefix,
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("comparisons", nargs="*", metavar="COMPARISON", help=", ".join(COMPARISONS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=600, help="tokens, image included")
    parser.add_argument("--solution", type=int, default=150, help="tokens, in five steps")
    parser.add_argument("--width", type=int, default=384, help="of the CPU's model")
    parser.add_argument("--layers", type=int, default=4, help="of the CPU's model")
    options = parser.parse_args()
    unknown = set(options.comparisons) - set(COMPARISONS)
    if unknown:
        parser.error(f"unknown comparison {min(unknown)!r}: known are {', '.join(COMPARISONS)}")
    gpu = options.device == "cuda"
    options.heads = options.width // 64
    torch.set_num_threads(options.threads)
    settings = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        **{k: v for k, v in vars(options).items() if k not in ("comparisons", "device")},
    }
    for name in options.comparisons or COMPARISONS:
        for line in COMPARISONS[name](options):
            print(json.dumps(line | settings), flush=True)


if __name__ == "__main__":
    main()
