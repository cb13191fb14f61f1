"""The process reward model: a Hugging Face backbone read at the step markers, all steps at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from dreamprm.data.batches import to_device
from dreamprm.data.encoding import Encoder
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.families import family_of
from dreamprm.models.images import FamilyImages
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
        backbone: a causal Hugging Face model without its vocabulary head, text-only or of a family
            in ``dreamprm.models.families``.
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
        config: Any = backbone.config
        family = family_of(config)
        self.images = family and FamilyImages(family, image_processor, tokenizer, config)
        self.readout = nn.Linear(config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def encoder(self, domains: Sequence[str] = ()) -> Encoder:
        """What turns trajectories into this model's batches."""
        return Encoder(self.tokenizer, self.images, self.step_marker, domains)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits of the step scores, [b, S]; meaningful where ``batch["step_mask"]`` is true."""
        hidden = self.backbone(**batch["inputs"], use_cache=False).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        at_markers = hidden[rows, batch["step_positions"]]
        # The readout is one row: in full precision it costs nothing, and scores near 0 and 1 keep
        # their order under bf16 autocast.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.readout(at_markers.to(self.readout.weight.dtype)).squeeze(-1)

    def score(self, trajectories: Iterable[Trajectory], batch_size: int = 32) -> list[list[float]]:
        """One score in (0, 1) per step of every trajectory, in the order given."""
        logits = self.step_logits(trajectories, batch_size)
        return [torch.tensor(row, dtype=torch.float64).sigmoid().tolist() for row in logits]

    @torch.inference_mode()
    def step_logits(
        self,
        trajectories: Iterable[Trajectory],
        batch_size: int = 32,
        progress: str | None = None,
    ) -> list[list[float]]:
        """The logit of every step's score, in the order given.

        The model is in evaluation mode for the call. Solutions of similar length share a batch; a
        solution without steps gets an empty list.

        Args:
            trajectories: what to score.
            batch_size: solutions per forward pass.
            progress: what the progress bar is called; None shows none.
        """
        items = list(trajectories)
        encode = self.encoder()
        device = self.readout.weight.device
        order = [i for i, item in enumerate(items) if item.steps]
        order.sort(key=lambda i: len(items[i].question) + sum(map(len, items[i].steps)))
        logits: list[list[float]] = [[] for _ in items]
        was_training = self.training
        self.eval()
        try:
            with progress_bar(progress, len(order), "solution") as bar:
                for start in range(0, len(order), batch_size):
                    indices = order[start : start + batch_size]
                    batch = to_device(encode([items[i] for i in indices]), device)
                    for i, row in zip(indices, self(batch).float().cpu(), strict=True):
                        logits[i] = row[: len(items[i].steps)].tolist()
                    bar.update(len(indices))
        finally:
            self.train(was_training)
        return logits

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes backbone, tokenizer, image processor and readout into one folder, safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        backbone: Any = self.backbone
        backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.readout.state_dict().items()},
            folder / READOUT_FILE,
        )
        settings = {"readout": "marker", "step_marker": self.step_marker}
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
            family = family_of(AutoConfig.from_pretrained(path))
            backbone = AutoModel.from_pretrained(path, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path)
            image_processor = AutoImageProcessor.from_pretrained(path) if family else None
        except ImportError as error:
            raise UserError(
                f"the image processor of {str(path)!r} needs a package that is missing: {error}; "
                "install the torchvision that goes with your torch (pytorch.org lists the pairs)"
            ) from error
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
