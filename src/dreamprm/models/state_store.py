"""What a frozen backbone says of every solution, computed once and kept on disk.

A store is a folder of safetensors files, read where they lie: of every solution the hidden states
at its steps, [S, d], under a digest of its question, steps and images. What another backbone says
of it, or the same one under another layout, is in another folder; see ``dreamprm.models.frozen``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.writing import PARTIAL, writing

OPEN = 256  # files at a time


class StateStore:
    """The states of solutions by their digests, in a folder that several processes may add to.

    What another process adds is not seen before the folder is opened again.

    Args:
        folder: of the files; made with the first one.

    Raises:
        UserError: a file in it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = lru_cache(maxsize=OPEN)(_open)
        self._files: dict[str, Path] = {}
        self._images: dict[Path, str] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._files |= dict.fromkeys(self._open(path).keys(), path)

    def key(self, row: Trajectory) -> str:
        """The digest of a solution."""
        images = [self._digest_of(path) for path in row.images]
        return xxhash.xxh3_128(json.dumps([row.question, row.steps, images]).encode()).hexdigest()

    def __contains__(self, row: Trajectory) -> bool:
        return self.key(row) in self._files

    def get(self, row: Trajectory) -> Tensor:
        """The states of a solution that is in the store, [S, d]."""
        key = self.key(row)
        return self._open(self._files[key]).get_tensor(key)

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
        self._files |= dict.fromkeys(states, path)

    def _digest_of(self, path: Path) -> str:
        if path not in self._images:
            if not path.is_file():
                return f"no file {path}"  # the encoder says so
            self._images[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._images[path]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # safetensors has one of its own, outside OSError
        raise UserError(
            f"cannot read {path}, states of a frozen backbone: {error}; "
            "they are made again where the file is deleted"
        ) from error
