"""Sizes of all images of a data set, and which files cannot be read: found once from the headers, kept in the cache, never decoded
unless a file looks suspicious."""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.files.cache import MANIFEST, BadImages, new_entry
from pipeline.data.files.decode import images_of_any_size, open_rgb, orientation_of, try_all
from pipeline.data.files.headers import NotAnImage, read_header
from pipeline.data.files.in_use import InUse
from pipeline.data.files.listing import Files, Listing, printable
from pipeline.errors import UserError

_log = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970  # of one image, where Pillow begins to refuse: more is an accident or an attack
_SIZES = "sizes.npz"
_MAX_NAMED = 10
_SCAN_THREADS = 16  # they wait for the file system, which may be a network away


@dataclass(frozen=True, eq=False)
class Scan:
    """What the headers say, by part (`train`, `test`) and by number of the file in its part.

    Attributes:
        entry: the folder of the cache that holds it.
        sizes: (N, 2) int32 each, height and width in pixels, upright; 0 for bad files.
        bad: why a file cannot be used.
        replaced: name in `entry` of the copy that is to be read in place of a file, because decoders disagree about it.
        in_use: keeps `entry`.
    """

    entry: Path
    sizes: dict[str, np.ndarray]
    bad: BadImages
    replaced: dict[str, dict[int, str]]
    in_use: InUse

    @property
    def longest_side(self) -> int:
        """Of all images, in pixels."""
        return max(int(sizes.max()) for sizes in self.sizes.values())


def scan_files(listing: Listing, entry: Path, num_threads: int, cache_below: int) -> Scan:
    """Read all headers and keep what they say in a new entry of the cache.

    If the images are to be streamed, a file that does not end as its format does is decoded in full, to know if it is whole; and images
    with transparency, CMYK images and turned PNGs, which decoders show in different ways, are decoded by Pillow and copied into the
    entry as RGB.

    Args:
        listing: the files.
        entry: the folder to make.
        num_threads: threads to decode in.
        cache_below: `data.cache_below`.

    Raises:
        OSError: the entry cannot be written.
    """
    sizes, bad, odd = {}, {}, {}
    replaced: dict[str, dict[int, str]] = {part: {} for part in listing.parts}
    with new_entry(entry) as building:
        for part, files in listing.parts.items():
            sizes[part], bad[part], odd[part] = _read_headers(listing, part, files)
        if max(part.max() for part in sizes.values()) > cache_below:
            for part in listing.parts:
                worse, replaced[part] = _examine(listing, part, odd[part], building, num_threads)
                bad[part] = dict(sorted((bad[part] | worse).items()))
                sizes[part][list(worse)] = 0
        np.savez(building / _SIZES, allow_pickle=False, **sizes)
        (building / MANIFEST).write_text(json.dumps({"bad": bad, "replaced": replaced}))
    return Scan(entry, sizes, bad, replaced, InUse(entry / MANIFEST))


def _read_headers(
    listing: Listing, part: str, files: Files
) -> tuple[np.ndarray, dict[int, str], dict[int, bool]]:
    """Sizes, bad files, and files to look into: whether each is plain and only its end is suspicious."""
    sizes, odd = np.zeros((len(files), 2), np.int32), {}
    root = bytes(listing.root) + b"/"

    def read(index: int) -> None:
        if files.num_bytes[index] < 0:
            raise NotAnImage("not a file that can be read")
        header = read_header(root + files.paths.raw(index), int(files.num_bytes[index]))
        if header.height * header.width > MAX_PIXELS:
            raise NotAnImage(f"{header.width}x{header.height} pixels are more than {MAX_PIXELS}")
        sizes[index] = header.height, header.width
        if not (header.plain and header.complete):
            odd[index] = header.plain

    bad = try_all(range(len(files)), read, _SCAN_THREADS, f"reading sizes of {part} images")
    return sizes, bad, odd


def _examine(
    listing: Listing, part: str, odd: dict[int, bool], folder: Path, num_threads: int
) -> tuple[dict[int, str], dict[int, str]]:
    """Decode suspicious files, and copy those that decoders disagree about: bad files, and names of copies."""
    names = {}

    def look_at(index: int) -> None:
        path = listing.root / listing.parts[part].paths[index]
        rgb = open_rgb(path)
        if not odd[index] and _is_shown_differently(path):
            names[index] = f"{part}-{index}.png"
            rgb.save(folder / names[index], compress_level=1)

    with images_of_any_size():
        bad = try_all(sorted(odd), look_at, num_threads, f"decoding unusual {part} images")
    return bad, dict(sorted(names.items()))


def _is_shown_differently(path: Path) -> bool:
    """Whether a decoder that knows neither transparency nor CMYK nor palettes nor turned PNGs would show other pixels.

    DALI's shows whole images with a palette wrongly where it decodes for a GPU (2.4). Opaque images have no need.
    """
    with Image.open(path) as image:
        if image.mode == "P" or not image.has_transparency_data:
            return True
        return image.convert("RGBA").getextrema()[3][0] < 255 or orientation_of(image) != 1  # type: ignore[index]


def read_scan(entry: Path, listing: Listing, *, discard_damaged: bool) -> Scan | None:
    """Open what `scan_files` has kept; None where there is none that can be used: with a warning, if there is a damaged one."""
    if not entry.exists():
        return None
    try:
        in_use = InUse(entry / MANIFEST)
        manifest = json.loads((entry / MANIFEST).read_text())
        with (entry / _SIZES).open("rb") as file, np.load(file, allow_pickle=False) as kept:
            sizes = {part: kept[part] for part in listing.parts}
        by_number: dict[str, Any] = {
            key: {
                part: {int(index): value for index, value in manifest[key][part].items()}
                for part in listing.parts
            }
            for key in ("bad", "replaced")
        }
        for part, files in listing.parts.items():
            if sizes[part].shape != (len(files), 2):
                raise ValueError(f"{part} is incomplete")
            for index, name in by_number["replaced"][part].items():
                copy = read_header(os.fsencode(entry / name), (entry / name).stat().st_size)
                if not copy.complete or [copy.height, copy.width] != sizes[part][index].tolist():
                    raise ValueError(f"{name} is incomplete")
    except Exception as error:  # a damaged zip file has many ways to fail
        _log.warning("the cache %s is damaged (%s)", entry, error)
        if discard_damaged:
            shutil.rmtree(entry, ignore_errors=True)
        return None
    return Scan(entry, sizes, **by_number, in_use=in_use)


def report_bad(listing: Listing, bad: BadImages, stop: bool) -> None:
    """Name the files that cannot be read: in a warning, with the whole list in `bad`'s place, or, to STOP, in the error.

    Raises:
        UserError: there are bad files, and they are to stop the run.
    """
    count = sum(map(len, bad.values()))
    if not count:
        return
    paths = [
        f"\n  {printable(str(listing.root / listing.parts[part].paths[index]))}: {reason}"
        for part, reasons in bad.items()
        for index, reason in reasons.items()
    ]
    if stop:
        listed = "".join(paths[:_MAX_NAMED]) + (
            f"\n  and {count - _MAX_NAMED} more" if count > _MAX_NAMED else ""
        )
        raise UserError(
            f"data.root: {count} of {len(listing)} images cannot be read; replace or remove them, or set data.on_bad_image=skip:{listed}"
        )
    _log.warning(
        "data.on_bad_image: %d of %d images cannot be read and are left out:%s",
        count,
        len(listing),
        "".join(paths),
    )
