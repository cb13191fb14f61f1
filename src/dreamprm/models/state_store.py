"""What a frozen backbone says of every solution, computed once and kept on disk.

A store is a folder of safetensors files: of every solution the hidden states at its steps, [S, d],
under a digest of its question, steps and images. What another backbone says of it, or the same one
under another layout, is in another folder; see ``dreamprm.models.frozen``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import xxhash
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.writing import PARTIAL, writing


class StateStore:
    """The states of solutions by their digests, in a folder that several processes may add to.

    Args:
        folder: of the files; made with the first one.

    Raises:
        UserError: a file in it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._known: dict[str, Tensor] = {}
        self._images: dict[Path, str] = {}
        self._look()

    def key(self, row: Trajectory) -> str:
        """The digest of a solution."""
        images = [self._digest_of(path) for path in row.images]
        text = json.dumps([row.question, row.steps, images])
        return xxhash.xxh3_128(text.encode(errors="surrogatepass")).hexdigest()

    def get(self, row: Trajectory) -> Tensor | None:
        """The states of a solution, [S, d]; None where they are not known yet."""
        key = self.key(row)
        if key not in self._known:
            if key not in self._files:
                return None
            with safe_open(self._files[key], framework="pt") as file:
                self._known |= {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
        return self._known[key]

    def __contains__(self, row: Trajectory) -> bool:
        key = self.key(row)
        return key in self._known or key in self._files

    def add(self, states: Mapping[str, Tensor]) -> None:
        """Keeps more states, by digest, as one file that is there whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        if not states:
            return
        name = hashlib.sha256("".join(sorted(states)).encode()).hexdigest()[:24]
        path = self.folder / f"{name}.safetensors"
        partial = path.with_suffix(f".{os.getpid()}{PARTIAL}")
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save({key: state.contiguous() for key, state in states.items()}))
            partial.replace(path)
        self._known |= states

    def _look(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
            except Exception as error:  # safetensors has one of its own, outside OSError
                raise UserError(
                    f"cannot read {path}, states of a frozen backbone: {error}; "
                    "they are made again where the file is deleted"
                ) from error

    def _digest_of(self, path: Path) -> str:
        if path not in self._images:
            if not path.is_file():
                return f"no file {path}"  # the encoder says so
            self._images[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._images[path]
