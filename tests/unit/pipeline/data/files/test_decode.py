"""Tests decoding one image file to RGB: modes, depths, transparency, orientation and size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipeline.data.files.decode import decode_image
from pipeline.data.files.image_formats import NO_IMAGE
from pipeline.data.files.many import reason_of

SIZE = 8


def pixels(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(tmp_path: Path, name: str, image: Image.Image | np.ndarray, **options: Any) -> np.ndarray:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(tmp_path / name, **options)
    return decode_image(tmp_path / name, SIZE)


def test_grey_palette_and_bilevel(tmp_path: Path) -> None:
    grey = Image.fromarray(pixels(0)[..., 0])
    assert (saved(tmp_path, "l.png", grey) == np.asarray(grey)[..., None]).all()
    assert np.ptp(saved(tmp_path, "l.jpg", grey), axis=2).max() == 0
    palette = Image.fromarray(pixels(1)).quantize(7)
    assert (saved(tmp_path, "p.png", palette) == np.asarray(palette.convert("RGB"))).all()
    bilevel = Image.fromarray(pixels(2)[..., 0] > 128)
    assert (saved(tmp_path, "1.png", bilevel) == 255 * np.asarray(bilevel)[..., None]).all()


def test_16_bit_grey_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    assert (saved(tmp_path, "16.png", Image.fromarray(values)) == (values >> 8)[..., None]).all()


def test_transparent_pixels_show_white(tmp_path: Path) -> None:
    rgba = np.dstack([pixels(0), np.full((SIZE, SIZE), 255, np.uint8)])
    rgba[0, 0] = (10, 20, 30, 0)
    decoded = saved(tmp_path, "rgba.png", rgba)
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert (decoded[1:] == rgba[1:, :, :3]).all()
    la = Image.fromarray(rgba).convert("LA")
    assert saved(tmp_path, "la.png", la)[0, 0].tolist() == [255, 255, 255]
    # a palette with a transparency for each entry
    palette = Image.fromarray(pixels(1)).quantize(4)
    decoded = saved(tmp_path, "p.png", palette, transparency=bytes([0, 255, 255, 255]))
    assert (decoded[np.asarray(palette) == 0] == 255).all()
    assert (
        decoded[np.asarray(palette) != 0] == np.asarray(palette.convert("RGB"))[np.asarray(palette) != 0]
    ).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    decoded = saved(
        tmp_path, "cmyk.jpg", Image.new("RGB", (SIZE, SIZE), (200, 40, 90)).convert("CMYK"), quality=100
    )
    assert np.abs(decoded.astype(int) - (200, 40, 90)).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_rotation(tmp_path: Path, suffix: str) -> None:
    halves = np.zeros((SIZE, SIZE, 3), np.uint8)
    halves[: SIZE // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: the stored top is shown on the right
    decoded = saved(tmp_path, f"x.{suffix}", halves, exif=exif)
    assert (decoded[:, SIZE // 2 :] > 250).all()
    assert (decoded[:, : SIZE // 2] < 5).all()


@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 16), (32, 32), (4, 8), (8, 24)])
def test_other_sizes_are_resized_and_cropped(tmp_path: Path, height: int, width: int) -> None:
    image, scale = pixels(3, height, width), SIZE / min(height, width)
    high, wide = round(height * scale), round(width * scale)
    resized = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
    top, left = (high - SIZE) // 2, (wide - SIZE) // 2
    assert (saved(tmp_path, "x.png", image) == resized[top : top + SIZE, left : left + SIZE]).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (5, 9)])
def test_any_size_is_brought_to_one(tmp_path: Path, height: int, width: int) -> None:
    assert saved(tmp_path, "x.png", pixels(3, height, width)).shape == (SIZE, SIZE, 3)


def test_smaller_sizes_are_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(saved(tmp_path, "x.png", stripes)[:, 1:-1].astype(int) - 127).max() <= 1


@pytest.mark.parametrize("kind", ["bmp", "tif", "ppm", "webp"])
def test_every_lossless_format_gives_its_pixels(tmp_path: Path, kind: str) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    assert (saved(tmp_path, f"x.{kind}", pixels(0), **options) == pixels(0)).all()


def test_floats_have_no_known_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"floats.*convert it to 8 or 16 bits"):
        saved(tmp_path, "float.tif", Image.new("F", (SIZE, SIZE), 0.5))


def test_gif_is_no_image_that_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnidentifiedImageError) as caught:
        saved(tmp_path, "x.gif", Image.fromarray(pixels(0)).quantize(4))
    assert reason_of(caught.value) == NO_IMAGE
