"""Reads the orientation of an image from its EXIF block."""

import struct

_ORIENTATION = 0x0112  # EXIF tag
_SHORT = 3  # EXIF type of an orientation in the standard
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # EXIF types that occur for it in practice
TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange height and width


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block (a TIFF header and its first directory); 1 if there is none."""
    return parse_orientation(exif)[0]


def parse_orientation(exif: bytes) -> tuple[int, bool]:
    """Return the orientation, and True if it is stored as the standard requires; if not, decoders differ."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1, False
    try:
        (offset,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, offset)
        for entry in range(entries):
            at = offset + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, at)
            if tag == _ORIENTATION:
                if kind not in _INTEGERS:
                    return 1, False
                (value,) = struct.unpack_from(f"{order}{_INTEGERS[kind]}", exif, at + 8)
                complete = offset + 2 + 12 * entries <= len(exif)
                return value if 1 <= value <= 8 else 1, kind == _SHORT and count == 1 and complete
    except struct.error:
        return 1, False
    return 1, True
