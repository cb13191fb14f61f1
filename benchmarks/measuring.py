"""What the benchmarks of training share: a model, batches of given shape, runs, and clocks.

The model is a Qwen2-VL of random weights: small on the CPU, with the sizes of Qwen2-VL-2B on CUDA.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from dreamprm.data.batches import to_device
from dreamprm.engines.base import EngineConfig
from dreamprm.engines.reweighting import ReweightingEngine
from dreamprm.models.checkpointing import enable_checkpointing
from dreamprm.models.families import QWEN_TOKENS
from dreamprm.models.reward_model import STEP_MARKER, ProcessRewardModel
from dreamprm.problems.config import ProblemConfig
from dreamprm.problems.prm import DomainWeighting, PRMFineTuning
from dreamprm.weighting.groups import DomainTable

PATCH, MERGE = 14 * 14 * 3 * 2, 2  # of Qwen2-VL's images: numbers a patch, patches a side a token
SPECIAL = {"<|vision_start|>": 0, "<|image_pad|>": 1, "<|vision_end|>": 2, STEP_MARKER: 3}
SPECIAL |= {"<|video_pad|>": 4, "<|endoftext|>": 5}
IDS = {name: SPECIAL[token] for name, token in QWEN_TOKENS.items()}


@dataclass(frozen=True)
class Shape:
    """Of a batch: solutions, tokens of their prompt, of these of an image, steps and their tokens.

    ``image`` is a square number, or 0 for text.
    """

    batch: int = 4
    prompt: int = 146
    image: int = 64
    steps: int = 5
    step_tokens: int = 30
    domains: int = 15


@dataclass(frozen=True)
class Setting:
    """Where and on what is measured."""

    device: str
    width: int
    layers: int
    vocabulary: int

    @property
    def precision(self) -> str:
        """bf16 autocast over fp32 parameters on CUDA."""
        return "bf16" if self.device == "cuda" else "fp32"

    def model(self) -> ProcessRewardModel:
        """A reward model whose readout is not zero, so that all gradients are there."""
        torch.manual_seed(0)
        with torch.device(self.device):
            backbone = Qwen2VLModel(config_of(self, IDS))
        tokens = Tokenizer(models.WordLevel(SPECIAL, unk_token="<|endoftext|>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<|endoftext|>")
        model = ProcessRewardModel(backbone, tokenizer)
        torch.nn.init.normal_(model.readout.weight, std=0.02)
        return model.to(self.device)

    def batch(self, shape: Shape, seed: int = 0) -> dict[str, Any]:
        """As of dreamprm.models.encoding: an image, the question, the steps with their markers."""
        g = torch.Generator().manual_seed(seed)
        length = shape.prompt + shape.steps * shape.step_tokens
        ids = torch.randint(len(SPECIAL), self.vocabulary, (shape.batch, length), generator=g)
        ends = shape.prompt + shape.step_tokens * torch.arange(1, shape.steps + 1) - 1
        ids[:, ends] = SPECIAL[STEP_MARKER]
        inputs = {"attention_mask": torch.ones_like(ids)}
        if shape.image:
            ids[:, 0], ids[:, 1 : 1 + shape.image], ids[:, 1 + shape.image] = 0, 1, 2
            side = round(shape.image**0.5) * MERGE
            inputs["pixel_values"] = torch.randn(shape.batch * side * side, PATCH, generator=g)
            inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * shape.batch)
        inputs |= {"input_ids": ids, "mm_token_type_ids": (ids == 1).int()}
        whole = torch.ones(shape.batch, shape.steps, dtype=torch.bool)
        batch = {
            "inputs": inputs,
            "step_rows": torch.arange(shape.batch)[:, None].expand(-1, shape.steps).clone(),
            "step_positions": ends.expand(shape.batch, -1).clone(),
            "step_mask": whole,
            "label_mask": whole,
            "step_labels": torch.rand(whole.shape, generator=g),
            "outcome": (torch.arange(shape.batch) % 2).float(),
            "domain": torch.randint(shape.domains, (shape.batch,), generator=g),
            "question": torch.arange(shape.batch),
        }
        return to_device(batch, self.device)

    def run(
        self,
        shape: Shape,
        method: str | None,
        meta: int | None = None,
        part: int = 0,
        unroll_steps: int = 5,
        checkpointing: bool = False,
    ) -> Callable[[], None]:
        """One cycle of ``unroll_steps`` lower steps, and one upper step where there is a method.

        Args:
            shape: of the lower batches.
            method: of the hypergradient; None for plain fine-tuning.
            meta: solutions of the meta batch; as many as of the lower one by default.
            part: solutions that the hypergradient is taken on; 0 for all.
            unroll_steps: T.
            checkpointing: of the backbone's gradients.
        """
        model, optimizer = _trained(self, checkpointing)
        lower = PRMFineTuning(
            ProblemConfig(
                type=method or "identity",
                unroll_steps=unroll_steps,
                precision=self.precision,
                gradient_clipping=1.0,
                hypergradient_batch_size=part,
            ),
            module=model,
            optimizer=optimizer,
            train_data_loader=_Batches(self, shape),
        )
        upper = None
        if method is not None:
            table = DomainTable([str(k) for k in range(shape.domains)])
            upper = DomainWeighting(
                ProblemConfig(precision=self.precision),
                module=table,
                optimizer=torch.optim.AdamW(table.parameters(), lr=0.01),
                train_data_loader=_Batches(self, replace(shape, batch=meta or shape.batch)),
            )
        strategy = "gpu" if self.device == "cuda" else "cpu"
        engine = ReweightingEngine(lower, upper, EngineConfig(strategy=strategy))
        engine.train()

        def cycle() -> None:
            for _ in range(unroll_steps):
                engine.global_step += 1
                engine.train_step()

        return cycle


@cache
def _trained(setting: Setting, checkpointing: bool) -> tuple[ProcessRewardModel, Any]:
    """The model that all runs train in turn, and its optimizer: several do not fit on a GPU."""
    model = setting.model()
    if checkpointing:
        enable_checkpointing(model.backbone)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5)


def forget() -> None:
    """Frees the model that runs share, once the runs are gone."""
    _trained.cache_clear()
    gc.collect()  # problems and engines hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def config_of(setting: Setting, ids: Mapping[str, int]) -> Qwen2VLConfig:
    """Of the backbone: small on the CPU, on CUDA that of Qwen2-VL-2B.

    Args:
        setting: where.
        ids: of the image tokens.
    """
    heads, half = max(1, setting.width // 64), 32
    text = {
        "hidden_size": setting.width,
        "intermediate_size": 8 * setting.width // 3,
        "num_hidden_layers": setting.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "vocab_size": setting.vocabulary,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [half - 24, 12, 12],
        },
    }
    vision = {
        "depth": max(1, setting.layers // 2),
        "embed_dim": setting.width // 2,
        "hidden_size": setting.width,
        "num_heads": max(1, heads // 2),
        "mlp_ratio": 4,
    }
    if setting.device == "cuda":  # Qwen/Qwen2-VL-2B-Instruct, config.json
        text |= {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        }
        text["rope_parameters"] |= {"mrope_section": [16, 24, 24]}
        vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16}
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        **ids,
    )


class _Batches:
    """One batch for ever, as a loader: what is measured is not the collation."""

    def __init__(self, setting: Setting, shape: Shape) -> None:
        self.setting, self.shape = setting, shape
        self.batch = setting.batch(shape)

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch

    def recent(self, batches: int, size: int) -> list[Any]:
        """A part of it."""
        return [self.setting.batch(replace(self.shape, batch=size))]


def seconds(
    passes: Mapping[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, list[float]]:
    """The time of each, one after the other in every round; a first round warms up.

    On the CPU of its threads, which others on the machine disturb less than a clock on the wall.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats + 1):
        for name, function in passes.items():
            _wait(device)
            start = clock()
            function()
            _wait(device)
            times[name].append(clock() - start)
    return {name: found[1:] for name, found in times.items()}


def ratio(times: Mapping[str, list[float]], of: str, to: str, by: float = 1.0) -> dict[str, float]:
    """Median, lowest and highest over the rounds of a time over another one's of its round."""
    found = [by * a / b for a, b in zip(times[of], times[to], strict=True)]
    values = (statistics.median(found), min(found), max(found))
    return dict(zip(("median", "lowest", "highest"), (round(v, 3) for v in values), strict=True))


def matrix_rate(device: str) -> float:
    """Operations a second of a large matrix product in the arithmetic of the runs; best of 5."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    times = seconds({"product": lambda: a @ a}, 5, device)["product"]
    return 2 * n**3 / min(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """The options that all have."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument("--width", type=int, default=256, help="of the CPU's model")
    found.add_argument("--layers", type=int, default=4, help="of the CPU's model")
    found.add_argument("--vocabulary", type=int, default=8192, help="of the CPU's model")
    found.add_argument("--repeats", type=int, default=repeats, help="rounds")
    return found


def setting(options: argparse.Namespace) -> Setting:
    """What was asked for."""
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda, but torch sees no GPU here")
    vocabulary = 151936 if options.device == "cuda" else options.vocabulary
    return Setting(options.device, options.width, options.layers, vocabulary)


def show(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints JSON lines."""
    for row in rows:
        print(json.dumps(row), flush=True)
