"""IDX files, the format of MNIST: http://yann.lecun.com/exdb/mnist."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from dreamprm.errors import UserError

UNSIGNED_BYTES = 8  # the third byte of the magic number; the fourth says how many dimensions


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes.

    Args:
        path: of the file.
        dimensions: that it must have: 3 of images, 1 of labels.

    Returns:
        uint8, shaped as the file says.

    Raises:
        UserError: names the file, and what is wrong with it: it cannot be read, it is no gzip, its
            magic number is another one, or it has not as many bytes as its sizes say.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        fault = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} as a gzipped IDX file: {fault}") from error
    expected = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if content[:4] != expected:
        raise UserError(
            f"{path}: its magic number is 0x{content[:4].hex()}, expected 0x{expected.hex()}, "
            f"unsigned bytes in {dimensions} dimensions"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise UserError(f"{path}: ends after {len(content)} bytes, in its header of {start}")
    sizes = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) - start != math.prod(sizes):
        raise UserError(
            f"{path}: has {len(content) - start:,} bytes after its header, expected "
            f"{' × '.join(map(str, sizes))} = {math.prod(sizes):,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
