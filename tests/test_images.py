"""Reading images: every mode, size and kind of damage, and names that lead elsewhere."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamprm.data.formats import load_trajectories
from dreamprm.data.images import read_image
from dreamprm.data.paths import image_path
from dreamprm.data.trajectory import Trajectory
from dreamprm.errors import UserError
from dreamprm.models.build import build_model
from dreamprm.models.config import ModelConfig
from dreamprm.models.encoding import Encoder
from tests.shared import SHARED, needs_shared
from tests.test_reward_model import TINY


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(folder / name, **options)  # type: ignore[arg-type]
    return folder / name


def grey(path: Path) -> list[int]:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)[0, :, 0].tolist()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 128), (0, 0, 0, 255)])
    assert grey(saved(tmp_path, image, "rgba.png")) == [255, 127, 0]
    assert grey(saved(tmp_path, image.convert("LA"), "la.png")) == [255, 127, 0]
    palette = Image.new("P", (3, 1))
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.putdata([0, 1, 0])
    assert grey(saved(tmp_path, palette, "p.png")) == [200, 0, 200]
    assert grey(saved(tmp_path, palette, "pt.png", transparency=0)) == [255, 0, 255]
    plain = Image.new("RGB", (1, 1), (9, 9, 9))
    assert grey(saved(tmp_path, plain, "key.png", transparency=(9, 9, 9))) == [255]


def test_grey_of_many_bits_is_scaled_and_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("16.png", "16.tiff"):
        assert grey(saved(tmp_path, Image.fromarray(values), name)) == [0, 1, 128, 255]
    assert grey(saved(tmp_path, Image.fromarray(values.astype(np.int32)), "32.tiff")) == [
        0,
        1,
        128,
        255,
    ]
    wide = np.array([[-100_000, 0, 100_000]], dtype=np.int32)
    assert grey(saved(tmp_path, Image.fromarray(wide), "wide.tiff")) == [0, 128, 255]
    real = np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32)
    assert grey(saved(tmp_path, Image.fromarray(real), "f.tiff")) == [0, 128, 255, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_every_mode_is_read(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path, Image.new(mode, (2, 2)), "x.tiff")
    assert Image.open(path).mode == mode
    assert read_image(path).mode == "RGB"
    inks = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    red, green, _ = read_image(saved(tmp_path, inks, "inks.jpg")).getpixel((0, 0))  # type: ignore[misc]
    assert red > 200 > 100 > green


def test_first_frame_content_not_name_and_exif(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 2), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(path).getpixel((0, 0)) == (255, 0, 0)
    path.rename(tmp_path / "gif.jpg")
    assert read_image(tmp_path / "gif.jpg").size == (4, 2)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert read_image(saved(tmp_path, frames[0], "e.jpg", exif=turned)).size == (2, 4)


@needs_shared
def test_the_real_images_with_wrong_names() -> None:
    kinds = []
    for path in sorted((SHARED / "wemath" / "images").iterdir()):
        with Image.open(path) as image:
            kinds.append((image.format, image.mode))
        assert read_image(path).mode == "RGB"
    assert sorted((kinds.count(k), *k) for k in set(kinds)) == [
        (3, "PNG", "P"),
        (16, "JPEG", "RGB"),
        (41, "PNG", "RGBA"),
    ]


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no image"),
        (b"", "is an empty file"),
        (b"GIF is not what this is", "is no image"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "is EPS, expected pixels",
        ),
        (png(0, 5, b""), "image"),
        # Between Pillow's warning and twice of it, and above: both are beyond the limit.
        (png(12_000, 12_000, b""), "12000 x 12000 pixels, expected 1 to 134217728"),
        (png(100_000, 100_000, b""), "more than 134217728 pixels"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_image(path)
    assert str(path) in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about what is broken
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.webp", "x.bmp", "x.tiff"])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(st.data())
def test_broken_files_are_read_or_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    content = bytearray(saved(tmp_path, Image.fromarray(noise), name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path = tmp_path / f"broken-{name}"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(UserError):  # and nothing else
        assert read_image(path).mode == "RGB"


class FixedReader:
    """Reads every image as one token."""

    placeholder, around = "", ("", "")

    def read(self, image: Image.Image, alone: bool) -> tuple[str, dict[str, torch.Tensor]]:
        return "i", {}

    def inputs(self, input_ids: object, images: object) -> dict[str, torch.Tensor]:
        return {}


def test_the_encoder_names_the_solution(tmp_path: Path) -> None:
    class Tokenizer:
        chat_template, unk_token_id, pad_token_id = None, -1, 0

        def convert_tokens_to_ids(self, token: str) -> int:
            return 1

        def encode(self, text: str, **options: bool) -> list[int]:
            return [2] * len(text)

    cut = saved(tmp_path, Image.new("RGB", (99, 99)), "cut.png")
    cut.write_bytes(cut.read_bytes()[:-40])
    encoder = Encoder(Tokenizer(), FixedReader(), "<step>")
    with pytest.raises(UserError, match=r"trajectory 'a7': cannot read image .*cut\.png"):
        encoder.rows(Trajectory("a7", "d", "q", ("s",), (cut,)))


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/../../x.png", "/x.png", "out/x.png", "x.png\0", "x" * 300, "loop", "loop/x"],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("pool")
    (folder / "pool").symlink_to("loop")
    with pytest.raises(UserError, match=r"outside the folder|is absolute|cannot be looked up"):
        image_path(folder, name)
    row = {"id": "a", "question": "q", "steps": [], "images": [name]}
    (folder / "x.jsonl").write_text(json.dumps(row))
    for images in ("require", "skip_missing", "ignore"):
        with pytest.raises(UserError, match=r"x\.jsonl:1: image '"):
            load_trajectories(folder / "x.jsonl", images=images)


def test_links_and_dots_within_the_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "link").symlink_to("img")
    for name in ("img/x.png", "link/x.png", "img/../img/x.png"):
        assert image_path(tmp_path, name) == tmp_path / name


def test_a_huge_image_ends_within_the_models_limit(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("1", (10_000, 10_000)), "huge.png")
    rows = [Trajectory("a", "d", "where?", ("here",), (path,))]
    model = build_model(ModelConfig("tiny-qwen2-vl", tiny=TINY, max_pixels=112 * 112), rows, seed=0)
    inputs = model.encoder()(rows)["inputs"]
    patch = model.backbone.config.vision_config.patch_size  # type: ignore[union-attr]
    assert 0 < inputs["pixel_values"].shape[0] * patch**2 <= 112 * 112
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(100_000, 100_000, b""))
    with pytest.raises(UserError, match=r"trajectory 'a': image .*bomb\.png has more than"):
        model.score([replace(rows[0], images=(bomb,))])
    strip = saved(tmp_path, Image.new("1", (10_000, 10)), "strip.png")
    with pytest.raises(UserError, match=r"'a': .* refuses .*strip\.png of 10000 x 10 pixels"):
        model.encoder()([replace(rows[0], images=(strip,))])
