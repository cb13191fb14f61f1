"""Prompts as other libraries pass them: a text, or a chat's messages, with images in any form."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dreamprm.data.images import upright_rgb
from dreamprm.errors import UserError, shown

Prompt = str | Sequence[Mapping[str, Any]]


def text_of(prompt: Prompt, roles: Sequence[str] | None = None) -> str:
    """The text of a prompt or a completion; messages are joined by blank lines.

    Args:
        prompt: a text or messages, whose contents are texts or lists of parts.
        roles: of the messages that count; all by default.
    """
    if isinstance(prompt, str):
        return prompt
    messages = [m for m in prompt if roles is None or m["role"] in roles]
    return "\n\n".join(text for message in messages for text in _texts(message))


def images_of(prompt: Prompt, folder: Path) -> tuple[Path, ...]:
    """The images among the parts of a prompt's messages, as files.

    Args:
        prompt: a text, which has none, or messages.
        folder: where images that are no files are put.

    Raises:
        UserError: an image is a link to somewhere else.
    """
    if isinstance(prompt, str):
        return ()
    return image_files((image for message in prompt for image in _images(message)), folder)


def image_files(images: Iterable[Any], folder: Path) -> tuple[Path, ...]:
    """Images as files; what is none is written to ``folder``, under a name by its content.

    Args:
        images: paths, PIL images, or data URLs.
        folder: to write to.

    Raises:
        UserError: one is a link, which nobody here follows.
    """
    return tuple(_file(image, folder) for image in images)


def _file(image: Any, folder: Path) -> Path:
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        upright_rgb(image).save(buffer, "PNG")
        data = buffer.getvalue()
    elif str(image).startswith("data:"):
        data = base64.b64decode(str(image).partition(",")[2])
    elif "://" in str(image):
        raise UserError(f"image {shown(image)} is a link, expected a file, a PIL image or data URL")
    else:
        return Path(image)
    path = folder / hashlib.sha256(data).hexdigest()
    if not path.exists():
        path.write_bytes(data)
    return path


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if part["type"] == "text"]


def _images(message: Mapping[str, Any]) -> list[Any]:
    content = message["content"]
    if isinstance(content, str):
        return []
    found = [p["image_url"]["url"] for p in content or () if p["type"] == "image_url"]
    # A part may only say that the dataset's column has an image for this place.
    return found + [p["image"] for p in content or () if p["type"] == "image" and "image" in p]
