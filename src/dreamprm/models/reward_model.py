"""The process reward model: a Hugging Face backbone read at the step markers, all steps at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from dreamprm.data.batches import to_device
from dreamprm.data.encoding import Encoder
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.lora import Adapter, load_backbone, save_backbone
from dreamprm.models.shared_prefix import (
    can_share_prefixes,
    encode_groups,
    last_hidden_state,
)
from dreamprm.models.token_batches import MAX_TOKENS, TokenBatch, token_batches
from dreamprm.progress import progress_bar

log = logging.getLogger("dreamprm")

STEP_MARKER = "<|step|>"
SETTINGS_FILE, READOUT_FILE = "prm.json", "readout.safetensors"


class ProcessRewardModel(nn.Module):
    """Gives every step of a solution a score in (0, 1): how likely it still ends right.

    One forward pass scores all steps: a marker token ends each step, and a linear map reads the
    score's logit from the backbone's hidden state there. Attention is causal, so a step's score
    does not depend on what follows it.

    Args:
        backbone: a causal Hugging Face model without its vocabulary head, text-only or Qwen2-VL.
        tokenizer: its tokenizer, with ``step_marker`` as one token.
        image_processor: its image processor; None for a text-only backbone.
        step_marker: the token that ends each step.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: Any,
        image_processor: Any | None = None,
        step_marker: str = STEP_MARKER,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.step_marker = step_marker
        self.adapter: Adapter | None = None  # LoRA of the backbone, if it has any
        config: Any = backbone.config
        self.readout = nn.Linear(config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def encoder(self, domains: Sequence[str] = ()) -> Encoder:
        """What turns trajectories into this model's batches."""
        return Encoder(self.tokenizer, self.image_processor, self.step_marker, domains)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits of the step scores, [b, S]; meaningful where ``batch["step_mask"]`` is true."""
        if "prefixes" in batch:
            hidden = last_hidden_state(self.backbone, batch)
        else:
            hidden = self.backbone(**batch["inputs"], use_cache=False).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        at_markers = hidden[rows, batch["step_positions"]]
        # The readout is one row: in full precision it costs nothing, and scores near 0 and 1 keep
        # their order under bf16 autocast.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.readout(at_markers.to(self.readout.weight.dtype)).squeeze(-1)

    def score(
        self, trajectories: Iterable[Trajectory], max_tokens: int = MAX_TOKENS
    ) -> list[list[float]]:
        """One score in (0, 1) per step of every trajectory, in the order given."""
        logits = self.step_logits(trajectories, max_tokens)
        return [torch.tensor(row, dtype=torch.float64).sigmoid().tolist() for row in logits]

    def step_logits(
        self,
        trajectories: Iterable[Trajectory],
        max_tokens: int = MAX_TOKENS,
        progress: str | None = None,
    ) -> list[list[float]]:
        """The logit of every step's score, in the order given; none for a solution without steps.

        Args:
            trajectories: what to score, see :meth:`scored_batches`.
            max_tokens: tokens per batch, padding included.
            progress: what the progress bar is called; None shows none.
        """
        items = list(trajectories)
        logits: list[list[float]] = [[] for _ in items]
        with progress_bar(progress, sum(bool(item.steps) for item in items), "solution") as bar:
            for batch, found in self.scored_batches(items, max_tokens):
                for i, row in zip(batch.rows, found, strict=True):
                    logits[i] = row
                bar.update(len(found))
        return logits

    @torch.inference_mode()
    def scored_batches(
        self,
        items: Sequence[Trajectory],
        max_tokens: int = MAX_TOKENS,
        done: Collection[int] = (),
    ) -> Iterator[tuple[TokenBatch, list[list[float]]]]:
        """Batches of solutions of similar length, each with the logits of its solutions' steps.

        Solutions of one question, wherever they stand, run what they have in common once, if the
        backbone can. The model is in evaluation mode until the last batch.

        Args:
            items: what to score; solutions without steps are in no batch.
            max_tokens: tokens per batch, padding included.
            done: the solutions of the first batches, which are left out; the other batches, and
                so their logits to the last bit, are the same as without it.
        """
        encode = self.encoder()
        device = self.readout.weight.device
        share = can_share_prefixes(self.backbone)
        was_training = self.training
        self.eval()
        try:
            for batch in token_batches(encode, items, max_tokens, share, done):
                groups = [[items[i] for i in piece.rows] for piece in batch.pieces]
                rows = [row for group in groups for row in group]
                encoded = encode_groups(encode, groups) if batch.shared else encode(rows)
                logits = self(to_device(encoded, device)).float().cpu()
                yield (
                    batch,
                    [
                        found[: len(row.steps)].tolist()
                        for row, found in zip(rows, logits, strict=True)
                    ],
                )
        finally:
            self.train(was_training)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes backbone, tokenizer, image processor and readout into one folder, safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        base = save_backbone(self.backbone, self.adapter, folder)
        self.tokenizer.save_pretrained(folder)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.readout.state_dict().items()},
            folder / READOUT_FILE,
        )
        settings = {"readout": "marker", "step_marker": self.step_marker} | base
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32
    ) -> ProcessRewardModel:
        """Loads a saved reward model, or puts a fresh readout on a plain Hugging Face backbone.

        Args:
            path: a folder written by :meth:`save_pretrained`, or the folder or hub name of a
                backbone; the latter gets the step marker as a new token and a readout of zeros
                (every score 0.5 until it is trained).
            dtype: of the backbone's parameters.

        Raises:
            UserError: there is no model at that path.
        """
        settings_file = Path(path) / SETTINGS_FILE
        settings = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
        try:
            backbone = load_backbone(path, settings, dtype)
            tokenizer = AutoTokenizer.from_pretrained(path)
            has_vision = getattr(AutoConfig.from_pretrained(path), "vision_config", None)
            image_processor = AutoImageProcessor.from_pretrained(path) if has_vision else None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load a model from {str(path)!r}: {error}") from error
        marker = settings.get("step_marker", STEP_MARKER)
        if not settings:
            add_step_marker(backbone, tokenizer, marker)
            log.warning("%s has no readout yet: every score is 0.5 until it is trained", path)
        model = cls(backbone, tokenizer, image_processor, marker)
        if settings:
            model.readout.load_state_dict(load_file(Path(path) / READOUT_FILE))
        return model


def add_step_marker(backbone: Any, tokenizer: Any, marker: str) -> None:
    """Makes ``marker`` one token, and the embedding table long enough for it."""
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [marker]}, replace_extra_special_tokens=False
    )
    # Published tables are padded (Qwen2-VL: 151,936 rows for 151,657 tokens), so most need no row.
    if len(tokenizer) > backbone.get_input_embeddings().num_embeddings:
        backbone.resize_token_embeddings(len(tokenizer))
