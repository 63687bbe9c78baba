"""Makes image files: smooth pictures with some noise, and unusual and bad files."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Make an image like a photo: smooth colours with a little noise, which JPEG preserves well."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (max(height // 16, 2), max(width // 16, 2), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(
        np.int16
    )
    return Image.fromarray(np.clip(smooth + generator.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8))


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(root: Path, train: int = 6, test: int = 3, classes: str = "ab", odd: bool = False) -> Path:
    """Write class folders with JPEG pictures of many sizes.

    Args:
        train, test: numbers per class.
        odd: add `odd_pictures` to a class of each part.
    """
    generator = np.random.default_rng(1)
    for part, count in (("train", train), ("val", test)):
        for label, name in enumerate(classes):
            for number in range(count):
                height, width = generator.integers(40, 120, 2).tolist()
                seed = 1000 * (part == "val") + 100 * label + number
                save(root / part / name / f"{number}.jpg", picture(height, width + 30, seed), quality=92)
    for name, content in odd_pictures().items() if odd else ():
        (root / "train/b" / name).write_bytes(content)
        (root / "val/a" / name).write_bytes(content)
    return root


def odd_pictures() -> dict[str, bytes]:
    """Return good files by name, each unusual in one way."""
    image = picture(80, 100, 7)
    half = image.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(image.size))
    turned = Image.Exif()
    turned[0x112] = 6
    # the standard requires 16 bits
    as_long = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIII", 0x112, 4, 1, 6, 0)
    return {
        "cmyk.jpg": encoded(image.convert("CMYK"), quality=95),
        "exif.jpg": encoded(image, exif=turned, quality=95),
        "exif_as_long.jpg": encoded(image, exif=as_long, quality=95),
        "exif_damaged.jpg": encoded(image, exif=b"Exif\0\0M?" + as_long[8:], quality=95),
        # must not rotate the image
        "xmp.jpg": encoded(
            image, xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>', quality=95
        ),
        "grey.jpg": encoded(image.convert("L"), quality=95),
        "grey16.png": encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
        "one.png": encoded(Image.new("RGB", (1, 1), (200, 30, 60)), "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG"),
        "png_by_content.jpg": encoded(image, "PNG"),
        "progressive.jpg": encoded(image, progressive=True, quality=95),
        "transparent.png": encoded(half, "PNG"),
        "opaque.png": encoded(image.convert("RGBA"), "PNG"),
        "ß 日本.JPEG": encoded(image, quality=95),
    }


def bad_pictures() -> dict[str, bytes]:
    """Return files that cannot be trained on, by name."""
    whole = encoded(picture(80, 100))
    return {
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": encoded(picture(80, 100), "PNG")[:-40],
        "empty.jpg": b"",
        "text.jpg": b"this is text",
    }


def pictures_of_formats() -> dict[str, bytes]:
    """Return good files by name: every format that is read, in its common forms and in some unusual ones."""
    image = picture(80, 100, 7)
    half = image.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(image.size))
    turned, tiff_turned = Image.Exif(), TiffImagePlugin.ImageFileDirectory_v2()
    turned[0x112] = tiff_turned[0x112] = 6
    grey, palette = image.convert("L"), image.quantize(16)
    grey16 = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    forms: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        *[(f"jpeg.{suffix}", image, "JPEG", {"quality": 95}) for suffix in ("jpe", "JFIF")],
        ("lossy.webp", image, "WEBP", {"quality": 95}),
        ("lossless.webp", image, "WEBP", {"lossless": True}),
        ("grey.webp", grey, "WEBP", {"lossless": True}),
        ("opaque.webp", image.convert("RGBA"), "WEBP", {"lossless": True, "exact": True}),
        ("transparent.webp", half, "WEBP", {"quality": 95}),
        ("turned.webp", image, "WEBP", {"lossless": True, "exif": turned}),
        ("moving.webp", image, "WEBP", {"save_all": True, "append_images": [image.rotate(180)]}),
        *[
            (f"{name}.bmp", shown, "BMP", {})
            for name, shown in (("rgb", image), ("grey", grey), ("p", palette))
        ],
        ("rgbx.bmp", half, "BMP", {}),
        *[
            (f"{compression}.tif", image, "TIFF", {"compression": compression})
            for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ],
        ("grey.tiff", grey, "TIFF", {}),
        ("grey16.tiff", grey16, "TIFF", {}),
        ("palette.tiff", palette, "TIFF", {}),
        ("transparent.tiff", half, "TIFF", {}),
        ("cmyk.tiff", image.convert("CMYK"), "TIFF", {}),
        ("turned.tiff", image, "TIFF", {"tiffinfo": tiff_turned}),
        ("pages.tiff", image, "TIFF", {"save_all": True, "append_images": [image.rotate(180)]}),
        *[(f"rgb.{suffix}", image, "PPM", {}) for suffix in ("ppm", "pnm")],
        ("grey.pgm", grey, "PPM", {}),
        ("grey16.pgm", grey16, "PPM", {}),
        ("bits.pbm", image.convert("1", dither=Image.Dither.NONE), "PPM", {}),
    ]
    return {name: encoded(shown, kind, **options) for name, shown, kind, options in forms}


def flip_bytes(content: bytes, every: int = 97) -> bytes:
    """Change bytes of the compressed pixels of a JPEG file, so that decoders still show a picture."""
    damaged = bytearray(content)
    for at in range(content.index(b"\xff\xda") + 14, len(content) - 2, every):
        changed = damaged[at] ^ 0x55
        if 0xFF not in (damaged[at - 1], damaged[at], changed):  # no new marker
            damaged[at] = changed
    return bytes(damaged)


def damaged_inside() -> bytes:
    """Return a PNG with an intact header and end, and zeros in the middle."""
    content = bytearray(encoded(picture(80, 100), "PNG"))
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    return bytes(content)
