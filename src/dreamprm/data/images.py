"""Reading an image file, whatever is in it, as what the image processors take: upright RGB."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from dreamprm.errors import UserError

# Of one image; an RGB image of so many takes 400 MB. A few kB of PNG can hold more than any memory.
MAX_PIXELS = 2**27

# Pillow hands these to a program of the operating system (Ghostscript, the Windows GDI).
_RENDERED_ELSEWHERE = ("EPS", "WMF")


def read_image(path: Path) -> Image.Image:
    """An image as RGB, turned upright as its EXIF orientation says.

    The kind of file is told by its content, not by its name. Transparency is composited on white;
    16-bit and floating-point grey is scaled to 8 bits; of an animation the first frame is taken.

    Returns:
        Its own size, at most ``MAX_PIXELS`` pixels; the model's image processor makes it smaller.

    Raises:
        UserError: the file is missing, empty, cut off, no image, or one of more pixels; the
            message names it.
    """
    with _opened(path) as image:
        image.load()
        _check_size(path, image)  # some formats hold images of another size than they say
        return upright_rgb(image)


def image_pixels(path: Path) -> int:
    """The number of an image's pixels, without decoding it.

    Raises:
        UserError: as ``read_image``, but for what only decoding shows.
    """
    with _opened(path) as image:
        return image.width * image.height


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, of which nothing but the size is read yet; errors within name the file."""
    try:
        if not path.is_file():
            raise UserError(f"there is no image {path}")
        if path.stat().st_size == 0:
            raise UserError(f"image {path} is an empty file")
        with warnings.catch_warnings():
            # Pillow's own limit is lower and only warns; up to twice of it, ours holds.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.format in _RENDERED_ELSEWHERE:
                    raise UserError(f"image {path} is {image.format}, expected pixels")
                _check_size(path, image)
                yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"image {path} has more than {MAX_PIXELS} pixels: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is no image: Pillow knows no such format") from error
    # Pillow's decoders raise what they come upon in broken data: OSError, SyntaxError, ValueError,
    # IndexError, struct.error and more. All mean the same to the user, and the cause is named.
    except Exception as error:
        cause = str(error) or type(error).__name__
        raise UserError(f"cannot read image {path}: {cause}") from error


def _check_size(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise UserError(
            f"image {path} has {width} x {height} pixels, expected 1 to {MAX_PIXELS} in all"
        )


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, see ``read_image``."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    elif image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        image = ImageCms.applyTransform(image, to_rgb) or image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as 8 bits; ``convert`` would cut values off above 255.

    Integers that fit 16 bits are taken for 16-bit ones; of others, and of floating-point numbers,
    the range of values in the image is scaled to 0 … 255.
    """
    values = np.asarray(image, dtype=np.float32)
    low, high = 0.0, 65535.0
    if image.mode == "F" or not (values.min() >= low and values.max() <= high):
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8))
