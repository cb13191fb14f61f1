"""The process reward model: a Hugging Face backbone read at every step of a solution at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from dreamprm.data.batches import to_device
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.encoding import Encoder
from dreamprm.models.families import family_of
from dreamprm.models.frozen import freeze, states_of
from dreamprm.models.images import FamilyImages
from dreamprm.models.layouts import add_step_marker
from dreamprm.models.lora import Adapter, load_backbone, save_backbone
from dreamprm.models.readouts import checked_layers, head_of, one_token, readout_named
from dreamprm.models.scoring_batches import MAX_TOKENS, TokenBatch, token_batches
from dreamprm.models.shared_prefix import (
    can_share_prefixes,
    encode_groups,
    last_hidden_state,
)
from dreamprm.models.state_store import StateStore
from dreamprm.progress import progress_bar
from dreamprm.writing import whole_folder

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
        positive, negative: the two words of the ``generative`` and ``conversation`` readouts, one
            token each.
        system: the system message of the readouts whose layout is a chat; None for none.
        layers: of the backbone that are read, side by side, from 1 or from −1 at the end; none for
            the last one.
        widths: of the hidden layers of the ``network`` readout.

    Raises:
        UserError: there is no such readout, layer or backbone family, or a word is not one token.
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
        system: str | None = None,
        layers: Sequence[int] = (),
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        kind = readout_named(readout)
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.adapter: Adapter | None = None  # LoRA of the backbone, if it has any
        self.store: StateStore | None = None  # of a frozen backbone's states; see frozen.py
        self.base: str | None = None  # where a frozen backbone is from
        config: Any = backbone.config
        family = family_of(config)
        self.images = FamilyImages(family, image_processor, tokenizer, config) if family else None
        self.step_marker = step_marker
        self.settings: dict[str, Any] = {"readout": readout, "step_marker": step_marker}
        self.system = system
        if system is not None:
            self.settings["system"] = system
        tokens = []
        if kind.two_words:
            self.settings |= {"positive": positive, "negative": negative}
            tokens = [one_token(tokenizer, word) for word in (positive, negative)]
        self.answer = tokens[0] if tokens else None
        self.layout = kind.layout
        head = (head or head_of(backbone)) if kind.needs_head else None
        words = cast(Any, head).weight.shape[0] if head is not None else 0
        self.head = head
        self.layers = checked_layers(layers, config, readout)
        own: dict[str, Any] = {}
        if self.layers:
            self.settings["layers"] = self.layers
        if kind.has_widths:
            self.settings["widths"] = own["widths"] = list(widths)
        width = config.get_text_config().hidden_size * max(1, len(self.layers))
        self.readout = kind.build(width, words, tokens, **own)

    def encoder(self, domains: Sequence[str] = ()) -> Encoder:
        """What turns trajectories into this model's batches."""
        return Encoder(
            self.tokenizer,
            self.images,
            self.step_marker,
            domains,
            self.layout,
            self.answer,
            self.system,
        )

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits of the step scores, [b, S]; meaningful where ``batch["step_mask"]`` is true."""
        return self.logits_of(self.states(batch))

    def logits_of(self, states: Tensor) -> Tensor:
        """Logits of the step scores, [b, S], by what the readout reads at every step, [b, S, d]."""
        if self.store is None:
            return self.readout(states, self.head)
        # States from disk; and a head that stands apart, which the model's moves leave behind.
        states = states.to(next(self.readout.parameters()).device)
        return self.readout(states, None if self.head is None else self.head.to(states.device))

    def states(self, batch: dict[str, Any]) -> Tensor:
        """What the readout reads at every step, [b, S, d]; as the batch has it, where it does."""
        if "states" in batch:
            return batch["states"]
        places = batch["step_rows"], batch["step_positions"]
        if "prefixes" in batch:
            return last_hidden_state(self.backbone, batch)[places]
        if not self.layers:
            return self.backbone(**batch["inputs"], use_cache=False).last_hidden_state[places]
        found = self.backbone(**batch["inputs"], use_cache=False, output_hidden_states=True)
        return torch.cat([found.hidden_states[layer][places] for layer in self.layers], -1)

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
        states = self.step_states if self.store is None else partial(states_of, self)
        was_training = self.training
        self.eval()
        try:
            for batch, found in states(items, max_tokens, done):
                logits = self.logits_of(found).float().cpu()
                lengths = [len(items[i].steps) for i in batch.rows]
                yield batch, [row[:n].tolist() for row, n in zip(logits, lengths, strict=True)]
        finally:
            self.train(was_training)

    def step_states(
        self, items: Sequence[Trajectory], max_tokens: int = MAX_TOKENS, done: Collection[int] = ()
    ) -> Iterator[tuple[TokenBatch, Tensor]]:
        """The batches of :meth:`scored_batches` with what the readout reads of them, [b, S, d]."""
        encode = self.encoder()
        device = next(self.parameters()).device
        share = self.layout != "prefixes" and not self.layers and can_share_prefixes(self.backbone)
        for batch in token_batches(encode, items, max_tokens, share, done):
            groups = [[items[i] for i in piece.rows] for piece in batch.pieces]
            rows = [row for group in groups for row in group]
            encoded = encode_groups(encode, groups) if batch.shared else encode(rows)
            yield batch, self.states(to_device(encoded, device))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes backbone, tokenizer, image processor and readout into one folder, safetensors.

        A folder that holds a reward model holds a whole one: its settings come last.

        Raises:
            UserError: it cannot be written.
        """
        with whole_folder(folder, last=SETTINGS_FILE) as written, _rust_errors(folder):
            self._save(written)

    def _save(self, folder: Path) -> None:
        backbone: Any = self.backbone
        if self.base is None:
            base = save_backbone(backbone, self.adapter, folder)
        else:
            base = {"base": self.base}
            backbone.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)
        tensors = dict(self.readout.state_dict())
        if self.head is not None:
            shared = self.head.weight is backbone.get_input_embeddings().weight
            own = self.head.state_dict(prefix=HEAD)
            tensors |= {n: t for n, t in own.items() if not (shared and n == f"{HEAD}weight")}
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / READOUT_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(self.settings | base, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> ProcessRewardModel:
        """Loads a saved reward model, or makes one of a plain Hugging Face backbone.

        Args:
            path: a folder written by :meth:`save_pretrained`, or the folder or hub name of a
                backbone; the latter gets the step marker as a new token where it has none, and a
                readout that is untrained (every score 0.5), but for those of two words.
            dtype: of the backbone's parameters.
            settings: ``readout``, ``step_marker``, ``positive``, ``negative``, ``system``,
                ``layers`` and ``widths`` of a plain backbone, as the constructor takes them; a
                saved model has its own.

        Raises:
            UserError: there is no model at that path, or a saved one has other settings, or its
                image processor needs a package that is missing.
        """
        named_as_folder = str(path).startswith((".", "~", "/")) or str(path).count("/") > 1
        if named_as_folder and not Path(path).exists():
            raise UserError(f"there is no folder {path} with a model")
        settings_file = Path(path) / SETTINGS_FILE
        saved = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
        for key, value in settings.items():
            if saved.get(key, value) != value:
                raise UserError(
                    f"the reward model in {str(path)!r} was saved with {key} {saved[key]!r}, "
                    f"and {value!r} is asked for"
                )
        settings |= saved
        with_head = readout_named(settings.get("readout", "marker")).needs_head and not saved
        try:
            family = family_of(AutoConfig.from_pretrained(path))
            if with_head:
                loader: Any = AutoModelForImageTextToText if family else AutoModelForCausalLM
                loaded = loader.from_pretrained(path, dtype=dtype)
            else:
                loaded = load_backbone(path, settings, dtype)
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
            backbone, head = loaded.base_model, loaded.get_output_embeddings()
            head_of(backbone)  # refuses what is not linear
        tensors = load_file(Path(path) / READOUT_FILE) if saved else {}
        own = {name.removeprefix(HEAD): tensors.pop(name) for name in [*tensors] if HEAD in name}
        if own:
            head = head_of(backbone)
            for name, tensor in own.items():
                setattr(head, name, nn.Parameter(tensor.to(dtype)))
        base, frozen = settings.pop("base", None), settings.pop("frozen", None)
        model = cls(backbone, tokenizer, image_processor, head=head, **settings)
        if saved:
            model.readout.load_state_dict(tensors)
        elif any(True for _ in model.readout.parameters()):
            log.warning("%s has no readout yet: every score is 0.5 until it is trained", path)
        if frozen is not None:
            freeze(model, base=base, **frozen)
        return model


@contextmanager
def _rust_errors(folder: str | Path) -> Iterator[None]:
    """safetensors and tokenizers raise what the disk refuses as exceptions of their own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or "os error" not in str(error).lower():
            raise
        raise UserError(f"cannot write {folder}: {error}") from error
