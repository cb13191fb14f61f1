"""Where the images of a file may lie: in its folder or below, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dreamprm.errors import UserError, shown


def image_path(folder: Path, name: str) -> Path:
    """The file of an image that is named relative to a folder; it need not be there.

    Raises:
        UserError: the name is absolute or no file name, or it leads out of the folder, by ``..``
            or by a symbolic link, or round in a circle.
    """
    if Path(name).is_absolute():
        raise UserError(f"image {shown(name)} is absolute, expected a path relative to the file")
    if _outside(folder / name, folder):
        raise UserError(f"image {shown(name)} is outside the folder of the file")
    return folder / name


def relative_images(images: Sequence[Path], folder: Path) -> list[str]:
    """The images' names relative to a folder, as they are written.

    Raises:
        UserError: an image is outside the folder.
    """
    for path in images:
        if _outside(path, folder):
            raise UserError(
                f"image {path} is outside {folder}, where the file is to be written: write it to "
                "a folder above its images"
            )
    return [path.resolve().relative_to(folder.resolve()).as_posix() for path in images]


def _outside(path: Path, folder: Path) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # whether it must be there is for the reader to say
    except (OSError, ValueError) as error:  # links in a circle, too long a name, a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"image {str(path)[:200]!r} cannot be looked up: {reason}") from error
    return not path.resolve().is_relative_to(folder.resolve())
