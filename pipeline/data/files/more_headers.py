"""Reads the headers of WebP, BMP, TIFF and PNM files."""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image

from pipeline.data.files.exif import TRANSPOSED, parse_orientation
from pipeline.data.files.image_formats import NotAnImage

_MAX_CHUNKS = 10_000  # of a WebP file: an animation has one for each frame
_MAX_EXIF = 65536  # bytes
_ALPHA, _ANIMATION = 0x10, 0x02  # flags of a WebP file
_COMMON_TIFF = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")  # compressions
_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANAR, _EXTRA = 258, 262, 274, 284, 338  # TIFF tags
_STRIPS = ((273, 279), (324, 325))  # TIFF tags: offsets and bytes of strips, and of tiles


ReadAt = Callable[[int, int], bytes]  # reads so many bytes of an image, from an offset in it on


def is_webp(head: bytes) -> bool:
    """Return True if a file begins like a WebP file."""
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def is_for_pillow(head: bytes) -> bool:
    """Return True if a file begins like a BMP, TIFF or PNM file."""
    tiff = head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    pnm = head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and head[2:3].isspace()
    return tiff or pnm or head.startswith(b"BM")


def read_webp(read: ReadAt, num_bytes: int) -> tuple[int, int, bool, bool]:
    """Follow the chunks of a WebP file (RFC 9649).

    Returns:
        Height and width, upright; True if it is opaque, upright and no animation; True if it is complete.

    Raises:
        struct.error: the file is cut off within its first chunks.
    """
    size, opaque, turn, has_image = None, True, (1, True), False
    end = 8 + struct.unpack("<I", read(4, 4))[0]
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > min(end, num_bytes):
            break
        kind, length = struct.unpack("<4sI", read(8, at))
        content = read(10, at + 8)
        has_image = has_image or kind in (b"VP8 ", b"VP8L", b"ANMF")
        if kind == b"VP8X":
            flags = content[0]
            opaque = opaque and not flags & (_ALPHA | _ANIMATION)
            size = (_uint24(content[7:10]) + 1, _uint24(content[4:7]) + 1)
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", content, 1)
            opaque = opaque and not bits >> 28 & 1
            size = size or ((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", content, 6)
            size = size or (height & 0x3FFF, width & 0x3FFF)
        elif kind == b"EXIF":
            exif = read(min(length, _MAX_EXIF), at + 8)
            turn = parse_orientation(exif.removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    if size is None or not has_image:
        raise NotAnImage("its header gives no size")
    height, width = size[::-1] if turn[0] in TRANSPOSED else size
    return height, width, opaque and turn == (1, True), end <= num_bytes


def _uint24(content: bytes) -> int:
    return int.from_bytes(content, "little")


def read_with_pillow(source: str | bytes | BytesIO, num_bytes: int) -> tuple[int, int, bool, bool]:
    """Read the header of a BMP, TIFF or PNM file with Pillow, which decodes nothing here.

    Returns:
        Height and width, upright; True if it has 8 bits, grey or RGB, and a common layout; True if it is
        complete.
    """
    try:
        with Image.open(source, formats=("BMP", "TIFF", "PPM")) as image:
            plain, end = _read_tiff(image) if image.format == "TIFF" else _read_raw(image)
            return image.height, image.width, plain, plain and end <= num_bytes
    except OSError as error:
        if error.errno:
            raise
        raise NotAnImage("its header is damaged") from None
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        raise NotAnImage("its header is damaged") from None


def _read_raw(image: Any) -> tuple[bool, int]:
    """Return for an opened BMP or PNM file: True if it is plain, and the byte at which its pixels end."""
    codec, _, offset, options = image.tile[0]
    raw_mode = options if isinstance(options, str) else options[0]
    if codec != "raw" or raw_mode not in ("BGR", "RGB", "L") or image.mode == "P":
        return False, 0
    channels = 1 if raw_mode == "L" else 3
    stride = image.width * channels if isinstance(options, str) else options[1] or image.width * channels
    return image.format == "PPM" or raw_mode == "BGR", offset + stride * image.height


def _read_tiff(image: Any) -> tuple[bool, int]:
    """Return for an opened TIFF file: True if it is plain, and the byte at which its pixels end."""
    tags = image.tag_v2
    plain = (
        image.mode in ("L", "RGB")
        and image.info.get("compression") in _COMMON_TIFF
        and set(tags.get(_BITS, ())) == {8}
        and tags.get(_PHOTOMETRIC) in (1, 2)
        and tags.get(_PLANAR, 1) == 1
        and tags.get(_ORIENTATION, 1) == 1
        and _EXTRA not in tags
    )
    ends = [
        start + count
        for offsets, counts in _STRIPS
        for start, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
    ]
    return plain and bool(ends), max(ends, default=0)
