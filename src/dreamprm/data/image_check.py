"""Whether an image file can be used, and a digest of its bytes to find it again by."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from PIL import Image

from dreamprm.errors import UserError


def check_image(path: Path) -> bytes:
    """Decodes an image to its last pixel and gives a digest of the file, 8 bytes.

    Raises:
        UserError: it is missing, no image, cut short, or larger than PIL's limit against
            decompression bombs (``Image.MAX_IMAGE_PIXELS``).
    """
    if path.is_dir():
        raise UserError(f"image {path} is a folder")
    if not path.is_file():
        raise UserError(f"there is no image {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
        return hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} is too large: {error}") from error
    # PIL's plugins raise these for files that are cut short or damaged.
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"cannot read image {path}: {error}") from error
