"""Tests sizes from headers against the images that Pillow decodes."""

import contextlib
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from pipeline.data.files.decode import images_of_any_size, open_rgb
from pipeline.data.files.headers import read_header
from pipeline.data.files.image_formats import NO_IMAGE, NotAnImage
from tests.pictures import pictures_of_formats

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))


def exif(orientation: int, filling: int = 0) -> bytes:
    tags = Image.Exif()
    tags[0x112] = orientation
    if filling:
        tags[0x010E] = "x" * filling  # a long description, so that the frame starts far from the beginning
    return tags.tobytes()


def header(tmp_path: Path, content: Image.Image | bytes, kind: str = "JPEG", **options: Any) -> Any:
    path = tmp_path / "file"
    if isinstance(content, Image.Image):
        content.save(path, kind, **options)
    else:
        path.write_bytes(content)
    return read_header(os.fsencode(path), path.stat().st_size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("filling", [0, 3900, 9000])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_orientation(tmp_path: Path, kind: str, orientation: int, filling: int):
    actual = header(tmp_path, PICTURE, kind, exif=exif(orientation, filling))
    with Image.open(tmp_path / "file") as image:
        width, height = ImageOps.exif_transpose(image).size
    assert (actual.height, actual.width, actual.complete) == (height, width, True)
    assert actual.plain == (kind == "JPEG" or orientation == 1)


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"icc_profile": bytes(70_000)}, {"comment": bytes(60_000)}, {"quality": 100}],
)
def test_any_jpeg(tmp_path: Path, options: dict[str, Any]):
    actual = header(tmp_path, PICTURE, **options)
    assert (actual.height, actual.width, actual.plain, actual.complete) == (12, 20, True, True)


@pytest.mark.parametrize(("mode", "plain"), [("L", True), ("RGB", True), ("CMYK", False)])
def test_modes_of_jpeg(tmp_path: Path, mode: str, plain: bool):
    assert header(tmp_path, PICTURE.convert(mode)).plain == plain


@pytest.mark.parametrize(
    ("mode", "plain"),
    [("1", True), ("L", True), ("P", False), ("RGB", True), ("LA", False), ("RGBA", False), ("I;16", True)],
)
def test_modes_of_png(tmp_path: Path, mode: str, plain: bool):
    actual = header(
        tmp_path, PICTURE.convert("L").convert(mode) if mode == "I;16" else PICTURE.convert(mode), "PNG"
    )
    assert (actual.height, actual.width, actual.plain, actual.complete) == (12, 20, plain, True)


def test_png_with_transparency_behind_other_chunks(tmp_path: Path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 9000)
    assert not header(tmp_path, PICTURE.quantize(4), "PNG", transparency=bytes([0, 255]), pnginfo=info).plain


def test_a_small_header_and_a_huge_image(tmp_path: Path):
    actual = header(tmp_path, Image.new("L", (12_000, 9_000)), "PNG")
    assert (actual.height, actual.width) == (9_000, 12_000)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG")
    return buffer.getvalue()


def test_where_a_file_ends(tmp_path: Path):
    whole = jpeg()
    for content, complete in (
        (whole, True),
        (whole + bytes(9), True),
        (whole + b"\r\n", True),
        (whole[:-2], False),
        (whole + b"more", False),
    ):
        assert header(tmp_path, content).complete == complete


@pytest.mark.parametrize("length", [3, 4, 20, 21, 100, 160])
def test_a_header_that_is_cut_off(tmp_path: Path, length: int):
    with pytest.raises(NotAnImage, match=r"cut off|damaged|no size"):
        header(tmp_path, jpeg()[:length])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"this is text", NO_IMAGE),
        (b"GIF89a" + bytes(40), NO_IMAGE),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (b"\xff\xd8\xff\xd9", "no size"),
        (b"\xff\xd8\xff" + bytes(100), "damaged"),
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(NotAnImage, match=message):
        header(tmp_path, content)


def test_a_gigabyte_of_fill_bytes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    pread = os.pread
    monkeypatch.setattr(
        os,
        "pread",
        lambda descriptor, length, at: (
            taken.append(length) or pread(descriptor, length, at).replace(b"\0", b"\xff")
        ),
    )
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"\xff\xd8")
        file.truncate(2**30)  # a hole, which reads as fill bytes here
    with pytest.raises(NotAnImage, match="its header does not end"):
        read_header(os.fsencode(path), 2**30)
    assert sum(taken) < 2**20


@pytest.mark.parametrize(
    ("block", "orientation", "plain"),
    [
        (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), 6, True),
        (b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0), 6, True),
        # many cameras write 0
        (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, 0, 0), 1, True),
        (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x100, 3, 1, 20, 0), 1, True),
        (b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHII", 0x112, 4, 1, 6), 6, False),
        (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIBBH", 0x112, 1, 1, 6, 0, 0), 6, False),
        (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 9, 1, 6, 0), 1, False),
        (b"II+\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), 1, False),
        (b"II*\0\x08\0\0\0\x09\0" + struct.pack("<HHIHH", 0x100, 3, 1, 6, 0), 1, False),
        # claims 35 entries
        (b"MM\0*\0\0\0\x08\0\x23" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0), 6, False),
        (b"garbage", 1, False),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_that_decoders_read_in_different_ways(
    tmp_path: Path, kind: str, block: bytes, orientation: int, plain: bool
):
    actual = header(tmp_path, PICTURE, kind, exif=b"Exif\0\0" + block + bytes(4))
    size = (12, 20) if orientation == 1 else (20, 12)
    assert (actual.height, actual.width) == size == open_rgb(tmp_path / "file").size[::-1]
    assert actual.plain == (plain and (kind == "JPEG" or orientation == 1))


def test_an_orientation_that_claims_a_gigabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    header(tmp_path, PICTURE, "PNG", exif=exif(6))
    content = (tmp_path / "file").read_bytes()
    at = content.index(b"eXIf")
    content = content[: at - 4] + (2**30).to_bytes(4) + content[at:]
    taken: list[int] = []
    pread = os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, length, at: taken.append(length) or pread(descriptor, length, at)
    )
    with pytest.raises(NotAnImage, match="cut off"):
        header(tmp_path, content)
    assert sum(taken) < 2**20


def test_random_damage_is_an_error_or_a_size_but_nothing_else(tmp_path: Path):
    whole, generator = jpeg(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for at in generator.integers(2, 200, 4):
            damaged[at] = generator.integers(256)
        with contextlib.suppress(OSError):
            assert header(tmp_path, bytes(damaged)).height > 0


@pytest.mark.parametrize("name", pictures_of_formats())
def test_every_format_has_the_size_that_pillow_decodes(tmp_path: Path, name: str):
    content = pictures_of_formats()[name]
    actual, rgb = header(tmp_path, content), open_rgb(tmp_path / "file")
    assert (actual.width, actual.height) == rgb.size
    unusual = (
        *("transparent.webp", "turned.webp", "moving.webp", "grey.bmp", "p.bmp", "rgbx.bmp", "jpeg.tif"),
        *("grey16.tiff", "palette.tiff", "transparent.tiff", "cmyk.tiff", "turned.tiff"),
        *("grey16.pgm", "bits.pbm"),
    )
    assert actual.plain == (name not in unusual)
    assert actual.complete or not actual.plain
    for missing in (1, len(content) // 2):
        (tmp_path / "file").write_bytes(content[:-missing])
        with images_of_any_size(), contextlib.suppress(NotAnImage):
            cut = read_header(os.fsencode(tmp_path / "file"), len(content) - missing)
            assert not cut.complete or open_rgb(tmp_path / "file").size == rgb.size  # the first page is whole


@pytest.mark.parametrize(
    "start", [b"RIFF\x10\0\0\0WEBP", b"RIFF\x10\0\0\0WEBPVP8X", b"BM", b"II*\0\x08\0\0\0", b"P6\n4"]
)
def test_a_damaged_start_of_any_format(tmp_path: Path, start: bytes):
    for content in (start, start + bytes(40)):
        with images_of_any_size(), pytest.raises(NotAnImage):
            header(tmp_path, content)
