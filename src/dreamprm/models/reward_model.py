"""The process reward model: a Hugging Face backbone read at every step of a solution at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from dreamprm.data.batches import to_device
from dreamprm.data.encoding import Encoder
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError, unknown_name
from dreamprm.models.families import family_of
from dreamprm.models.images import FamilyImages
from dreamprm.models.readouts import READOUTS, head_of, one_token
from dreamprm.progress import progress_bar

log = logging.getLogger("dreamprm")

STEP_MARKER = "<|step|>"
SETTINGS_FILE, READOUT_FILE = "prm.json", "readout.safetensors"
HEAD = "head."  # before the names of a vocabulary head's tensors, in READOUT_FILE


class ProcessRewardModel(nn.Module):
    """Gives every step of a solution a score in (0, 1): how likely it still ends right.

    One forward pass scores all steps: a marker token ends each step, and the readout makes the
    score's logit from the backbone's hidden state there. Attention is causal, so a step's score
    does not depend on what follows it.

    Args:
        backbone: a causal Hugging Face model without its vocabulary head, text-only or of a family
            in ``dreamprm.models.families``.
        tokenizer: its tokenizer, with ``step_marker`` as one token.
        image_processor: its image processor; None for a text-only backbone.
        step_marker: the token that ends each step.
        readout: a name of ``dreamprm.models.readouts.READOUTS``.
        head: the backbone's vocabulary head, for the readouts that need one; by default it shares
            its weights with the backbone's input embeddings.
        positive, negative: the two words of the ``generative`` readout, one token each.

    Raises:
        UserError: there is no such readout or backbone family, or a word is not one token.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: Any,
        image_processor: Any | None = None,
        step_marker: str = STEP_MARKER,
        readout: str = "marker",
        head: nn.Module | None = None,
        positive: str = "+",
        negative: str = "-",
    ) -> None:
        super().__init__()
        if readout not in READOUTS:
            raise UserError(unknown_name("readout", readout, READOUTS))
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        config: Any = backbone.config
        family = family_of(config)
        self.images = FamilyImages(family, image_processor, tokenizer, config) if family else None
        self.step_marker = step_marker
        self.settings = {"readout": readout, "step_marker": step_marker}
        tokens = []
        if readout == "generative":
            self.settings |= {"positive": positive, "negative": negative}
            tokens = [one_token(tokenizer, word) for word in (positive, negative)]
        kind = READOUTS[readout]
        self.layout = kind.layout
        head = (head or head_of(backbone)) if kind.needs_head else None
        words = cast(Any, head).weight.shape[0] if head is not None else 0
        self.head = head
        self.readout = kind.build(config.get_text_config().hidden_size, words, tokens)

    def encoder(self, domains: Sequence[str] = ()) -> Encoder:
        """What turns trajectories into this model's batches."""
        return Encoder(self.tokenizer, self.images, self.step_marker, domains, self.layout)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits of the step scores, [b, S]; meaningful where ``batch["step_mask"]`` is true."""
        hidden = self.backbone(**batch["inputs"], use_cache=False).last_hidden_state
        return self.readout(hidden[batch["step_rows"], batch["step_positions"]], self.head)

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
        device = next(self.parameters()).device
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
        tensors = dict(self.readout.state_dict())
        if self.head is not None and self.head.weight is not backbone.get_input_embeddings().weight:
            tensors |= self.head.state_dict(prefix=HEAD)
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / READOUT_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(self.settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, **settings: str
    ) -> ProcessRewardModel:
        """Loads a saved reward model, or makes one of a plain Hugging Face backbone.

        Args:
            path: a folder written by :meth:`save_pretrained`, or the folder or hub name of a
                backbone; the latter gets the step marker as a new token where it has none, and a
                readout that is untrained (every score 0.5), but for the generative one.
            dtype: of the backbone's parameters.
            settings: ``readout``, ``step_marker``, ``positive`` and ``negative`` of a plain
                backbone, as the constructor takes them; a saved model has its own.

        Raises:
            UserError: there is no model at that path, or a saved one has other settings, or its
                image processor needs a package that is missing.
        """
        settings_file = Path(path) / SETTINGS_FILE
        saved = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
        for key, value in settings.items():
            if saved.get(key, value) != value:
                raise UserError(
                    f"the reward model in {str(path)!r} was saved with {key} {saved[key]!r}, "
                    f"and {value!r} is asked for"
                )
        settings |= saved
        readout = settings.get("readout", "marker")
        if readout not in READOUTS:
            raise UserError(unknown_name("readout", readout, READOUTS))
        with_head = READOUTS[readout].needs_head and not saved
        try:
            family = family_of(AutoConfig.from_pretrained(path))
            loader: Any = AutoModel
            if with_head:
                loader = AutoModelForImageTextToText if family else AutoModelForCausalLM
            loaded = loader.from_pretrained(path, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path)
            image_processor = AutoImageProcessor.from_pretrained(path) if family else None
        except ImportError as error:
            raise UserError(
                f"the image processor of {str(path)!r} needs a package that is missing: {error}; "
                "install the torchvision that goes with your torch (pytorch.org lists the pairs)"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load a model from {str(path)!r}: {error}") from error
        if not saved:
            add_step_marker(loaded, tokenizer, settings.get("step_marker", STEP_MARKER))
        backbone, head = loaded, None
        if with_head:
            backbone, head = loaded.model, loaded.get_output_embeddings()
        tensors = load_file(Path(path) / READOUT_FILE) if saved else {}
        own = {name.removeprefix(HEAD): tensors.pop(name) for name in [*tensors] if HEAD in name}
        if own:
            head = head_of(backbone)
            head.weight = nn.Parameter(own["weight"].to(dtype))
        model = cls(backbone, tokenizer, image_processor, head=head, **settings)
        if saved:
            model.readout.load_state_dict(tensors)
        elif any(True for _ in model.readout.parameters()):
            log.warning("%s has no readout yet: every score is 0.5 until it is trained", path)
        return model


def add_step_marker(backbone: Any, tokenizer: Any, marker: str) -> None:
    """Makes ``marker`` one token, and the embedding table long enough for it."""
    if marker in tokenizer.get_vocab():
        return
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [marker]}, replace_extra_special_tokens=False
    )
    # Published tables are padded (Qwen2-VL: 151,936 rows for 151,657 tokens), so most need no row.
    if len(tokenizer) > backbone.get_input_embeddings().num_embeddings:
        backbone.resize_token_embeddings(len(tokenizer))
