"""Reads size, orientation and completeness of an image file from its first and last bytes."""

import os
import struct
from dataclasses import dataclass
from io import BytesIO

from pipeline.data.files.exif import TRANSPOSED, parse_orientation
from pipeline.data.files.image_formats import NO_IMAGE, NotAnImage
from pipeline.data.files.more_headers import ReadAt, is_for_pillow, is_webp, read_webp, read_with_pillow

# bytes read from either end: enough, except for files with a picture in their metadata
_HEAD, _TAIL = 4096, 64
_MAX_PARTS = 100_000  # markers, fill bytes and chunks before the image: a limit for files of fill bytes alone
_MAX_EXIF = 65536  # bytes, the limit of a JPEG marker
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Header:
    """The information that a file gives about its image.

    Attributes:
        height, width: in pixels, upright, after the EXIF orientation is applied.
        plain: True if every decoder shows the same image: RGB or grey, without transparency. A plain JPEG has
            8 bits, Huffman coding and valid EXIF; other plain files have no palette and no rotation.
        complete: True if the file ends as its format requires. Other files can still be complete: decode them
            to find out.
        is_jpeg: True for a JPEG file.
    """

    height: int
    width: int
    plain: bool
    complete: bool
    is_jpeg: bool = False


def read_header(path: str | bytes, num_bytes: int, offset: int | None = None) -> Header:
    """Read the header of one image.

    Args:
        path: of the file.
        num_bytes: size of the image in the file.
        offset: of the image in the file; None: the image is the file.

    Raises:
        OSError: the file cannot be read.
        NotAnImage: the file is not an image of a format that is read, or its header is damaged.
    """
    if num_bytes == 0:
        raise NotAnImage("the file is empty")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for ever

    def read(count: int, at: int) -> bytes:
        if offset is None:
            return os.pread(descriptor, count, at)
        return os.pread(descriptor, max(min(count, num_bytes - at), 0), offset + at)

    try:
        head = read(_HEAD, 0)
        tail = head if num_bytes <= _HEAD else read(_TAIL, num_bytes - _TAIL)
        is_jpeg = head.startswith(b"\xff\xd8\xff")
        if is_jpeg:
            height, width, plain, orientation = _read_jpeg(read, head)
            complete = tail.rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
        elif head.startswith(_PNG):
            height, width, simple, orientation = _read_png(read, head)
            complete = tail.endswith(_PNG_END)
            plain = simple and orientation == 1
        elif is_webp(head):
            return _checked(Header(*read_webp(read, num_bytes)))
        elif is_for_pillow(head):
            return _checked(
                Header(*read_with_pillow(path if offset is None else BytesIO(read(num_bytes, 0)), num_bytes))
            )
        else:
            raise NotAnImage(NO_IMAGE)
    except (IndexError, struct.error):
        raise NotAnImage("its header is cut off") from None
    finally:
        os.close(descriptor)
    size = (width, height) if orientation in TRANSPOSED else (height, width)
    return _checked(Header(*size, plain, complete, is_jpeg))


def _checked(header: Header) -> Header:
    if not header.height or not header.width:
        raise NotAnImage("its header gives no size")
    return header


def _read_jpeg(read: ReadAt, head: bytes) -> tuple[int, int, bool, int]:
    """Follow the markers (ITU-T T.81, annex B) up to the start of the frame.

    Returns:
        Height, width, True if any decoder decodes it to the same grey or RGB pixels, and the orientation.
    """
    # `block` holds the file from byte `start` on; `at` is the next marker's byte
    block, start, at = head, 0, 2
    orientation, exif_valid, exif_seen = 1, True, False
    for _ in range(_MAX_PARTS):
        # near the end of the block: read on from the marker
        if at + 20 > start + len(block) and len(block) > 1:
            block, start = read(_HEAD, at), at
        here = at - start
        if block[here] != 0xFF:
            raise NotAnImage("its header is damaged")
        marker = block[here + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            raise NotAnImage("its header gives no size")
        (length,) = struct.unpack_from(">H", block, here + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, components = struct.unpack_from(">BHHB", block, here + 4)
            common = marker in (0xC0, 0xC1, 0xC2) and bits == 8  # not lossless, arithmetic or hierarchical
            return height, width, exif_valid and common and components in (1, 3), orientation
        if marker == 0xE1 and block[here + 4 : here + 10] == b"Exif\0\0":
            if exif_seen:  # Pillow takes the first of several EXIF blocks
                exif_valid = False
            else:
                exif = block[here + 10 : here + 2 + length]
                if len(exif) < length - 8:
                    exif = read(length - 8, at + 10)
                orientation, exif_valid = parse_orientation(exif)
            exif_seen = True
        at += 2 + length
    raise NotAnImage("its header does not end")


def _read_png(read: ReadAt, head: bytes) -> tuple[int, int, bool, int]:
    """Follow the chunks up to the first one of the image.

    Returns:
        Height, width, True if all pixels are grey or RGB and opaque, and the orientation.
    """
    width, height, _, colour = struct.unpack_from(">IIBB", head, 16)
    simple, orientation, at = colour in (0, 2), 1, 8
    block, start = head, 0
    for _ in range(_MAX_PARTS):
        if at + 8 > start + len(block):
            block, start = read(_HEAD, at), at
        length, kind = struct.unpack_from(">I4s", block, at - start)
        if kind in (b"IDAT", b"IEND"):
            return height, width, simple, orientation
        if kind == b"tRNS":
            simple = False
        elif kind == b"eXIf":
            exif = read(min(length, _MAX_EXIF), at + 8)
            orientation, exif_valid = parse_orientation(exif)
            simple = simple and exif_valid
        at += 12 + length
    raise NotAnImage("its header does not end")
