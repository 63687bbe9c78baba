"""Reads the sizes of all images of a data set, and finds the files that cannot be read.

The headers are read once and the results are kept in the cache. A file is decoded only if its header is
unusual.
"""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.atomic_io import write_json
from pipeline.data.files.cache import MANIFEST, BadImages, mark_used, new_entry, report_damaged
from pipeline.data.files.decode import images_of_any_size, open_rgb, orientation_of
from pipeline.data.files.file_part import ImageFile, open_image
from pipeline.data.files.headers import Header, read_header
from pipeline.data.files.image_formats import NotAnImage
from pipeline.data.files.jpeg_damage import find_damaged_jpegs
from pipeline.data.files.listing import Files, Listing
from pipeline.data.files.many import Portable, try_all

MAX_PIXELS = 178_956_970  # of one image. Above this limit Pillow refuses an image: a mistake, or an attack
_SIZES = "sizes.npz"
# Images that are read to describe all: their mean differs from the mean of all by about 0.005 at most.
_SAMPLE = 1024
_SCAN_THREADS = 16  # the threads wait for the file system, which may be on a network


@dataclass(frozen=True, eq=False)
class Scan:
    """The content of the headers, by part (`train`, `test`) and by index of the file in its part.

    Attributes:
        entry: folder of the cache with these results.
        sizes: (N, 2) int32 for each part, height and width in pixels, upright; 0 for bad files.
        bad: the reason why a file cannot be used.
        replaced: name in `entry` of the copy to read in place of a file that decoders show in different ways.
        damaged: what is wrong inside a file that decoders show nevertheless.
        num_inspected: number of files in which such damage was looked for.
    """

    entry: Path
    sizes: dict[str, np.ndarray]
    bad: BadImages
    replaced: dict[str, dict[int, str]]
    damaged: dict[str, dict[int, str]]
    num_inspected: int

    @property
    def longest_side(self) -> int:
        """Return the longest side of all images, in pixels."""
        return max(int(sizes.max()) for sizes in self.sizes.values())


def scan_files(
    listing: Listing, entry: Path, num_threads: int, cache_below: int, *, decode_all: bool = False
) -> Scan:
    """Read all headers and store the results in a new entry of the cache.

    If the images are to be streamed, two kinds of files are also decoded, or with DECODE_ALL all of them:

    - a file that does not end as its format requires, to learn if it is complete;
    - images with transparency, CMYK images, rotated PNGs and the like, which decoders show in different ways:
      Pillow decodes them, and a copy in RGB is stored in the entry.

    JPEG files are inspected for damage inside: a sample of them if the images are to be streamed, all with
    DECODE_ALL or if they are to be decoded.

    Args:
        listing: the files.
        entry: the folder to make.
        num_threads: threads to decode in.
        cache_below: `data.cache_below`.
        decode_all: find the files that are damaged between an intact header and an intact end, too.

    Raises:
        OSError: the entry cannot be written.
    """
    sizes, bad, unusual, jpegs = {}, {}, {}, {}
    replaced: dict[str, dict[int, str]] = {part: {} for part in listing.parts}
    with new_entry(entry) as building:
        for part, files in listing.parts.items():
            sizes[part], bad[part], unusual[part], jpegs[part] = _read_headers(
                *(listing, part, files, num_threads), all_unusual=decode_all
            )
        streamed = max(part.max() for part in sizes.values()) > cache_below
        if streamed:
            for part in listing.parts:
                also_bad, replaced[part] = _decode_unusual(
                    listing, part, unusual[part], building, num_threads
                )
                bad[part] = dict(sorted((bad[part] | also_bad).items()))
                sizes[part][list(also_bad)] = 0
        inspected = {part: np.flatnonzero(jpegs[part] & (sizes[part][:, 0] > 0)) for part in jpegs}
        if streamed and not decode_all:
            inspected = {part: indices[spread(len(indices))] for part, indices in inspected.items()}
        damaged = _inspect(listing, inspected, num_threads)
        np.savez(building / _SIZES, allow_pickle=False, **sizes)
        found = {"bad": bad, "replaced": replaced, "damaged": damaged}
        num_inspected = sum(map(len, inspected.values()))
        write_json(building / MANIFEST, {**found, "num_inspected": num_inspected})
    return Scan(entry, sizes, **found, num_inspected=num_inspected)


def spread(count: int) -> np.ndarray:
    """Return the indices of an evenly spread sample of so many images: int64, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))


def _inspect(
    listing: Listing, indices: dict[str, np.ndarray], num_processes: int
) -> dict[str, dict[int, str]]:
    """Return the damage inside of the JPEG files with these indices, by part and index."""
    inspected = [(part, index) for part, of_part in indices.items() for index in of_part.tolist()]
    paths = [listing.file(part, index) for part, index in inspected]
    damaged: dict[str, dict[int, str]] = {part: {} for part in listing.parts}
    for row, text in find_damaged_jpegs(paths, num_processes).items():
        part, index = inspected[row]
        damaged[part][index] = text
    return damaged


def _read_headers(
    listing: Listing, part: str, files: Files, num_processes: int, *, all_unusual: bool = False
) -> tuple[np.ndarray, dict[int, str], dict[int, bool], np.ndarray]:
    """Read the headers of one part.

    Returns:
        The sizes, the bad files, the unusual files (True if only the end of the file is unusual), and a mask
        of the JPEG files.
    """
    sizes, unusual = np.zeros((len(files), 2), np.int32), {}
    jpegs = np.zeros(len(files), bool)

    def keep(index: int, header: Header) -> None:
        sizes[index], jpegs[index] = (header.height, header.width), header.is_jpeg
        if all_unusual or not (header.plain and header.complete):
            unusual[index] = header.plain

    bad = try_all(
        *(range(len(files)), _read_header_of, _SCAN_THREADS, f"reading sizes of {part} images"),
        portable=Portable(keep, partial(_place, bytes(listing.root), files), num_processes),
        within=images_of_any_size,
    )
    return sizes, bad, unusual, jpegs


def _place(root: bytes, files: Files, index: int) -> tuple[bytes, int, int | None]:
    """Return the path, the bytes and the offset of an image, as `read_header` takes them."""
    num_bytes, members = int(files.num_bytes[index]), files.members
    if members is None:
        return root + b"/" + files.paths.raw(index), num_bytes, None
    return bytes(members.shards[members.shard[index]]), num_bytes, int(members.offset[index])


def _read_header_of(place: tuple[bytes, int, int | None]) -> Header:
    _, num_bytes, _ = place
    if num_bytes < 0:
        raise NotAnImage("not a file that can be read")
    header = read_header(*place)
    refuse_huge(header.width, header.height)
    return header


def refuse_huge(width: int, height: int) -> None:
    """Raise a NotAnImage for an image of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise NotAnImage(f"{width}x{height} pixels are more than {MAX_PIXELS}")


def _decode_unusual(
    listing: Listing, part: str, unusual: dict[int, bool], folder: Path, num_threads: int
) -> tuple[dict[int, str], dict[int, str]]:
    """Decode unusual files, and copy those that decoders show in different ways.

    Returns:
        The bad files with their reasons, and the names of the copies.
    """
    names = {}

    def decode(index: int) -> None:
        file = listing.file(part, index)
        rgb = open_rgb(file)
        if not unusual[index] and _decoders_differ(file):
            names[index] = f"{part}-{index}.png"
            rgb.save(folder / names[index], compress_level=1)

    what = f"decoding unusual {part} images"
    bad = try_all(sorted(unusual), decode, num_threads, what, within=images_of_any_size)
    return bad, dict(sorted(names.items()))


def _decoders_differ(file: ImageFile) -> bool:
    """Return True if a simple decoder shows other pixels than Pillow.

    A simple decoder knows neither transparency nor CMYK nor palettes nor rotated PNGs nor unusual TIFFs.
    DALI 2.4 shows whole images with a palette wrongly if it decodes for a GPU. Opaque images need no copy.
    """
    with Image.open(open_image(file)) as image:
        if image.format == "TIFF" or image.mode == "P" or not image.has_transparency_data:
            return True
        return image.convert("RGBA").getextrema()[3][0] < 255 or orientation_of(image) != 1  # type: ignore[index]


def read_scan(entry: Path, listing: Listing, *, discard_damaged: bool) -> Scan | None:
    """Open the results of `scan_files`. Return None if there are none, or (with a warning) damaged ones."""
    if not entry.exists():
        return None
    mark_used(entry)
    try:
        return _read_scan(entry, listing)
    except Exception as error:  # a damaged zip file raises many kinds of errors
        report_damaged(entry, error, discard=discard_damaged)
        return None


def _read_scan(entry: Path, listing: Listing) -> Scan:
    manifest = json.loads((entry / MANIFEST).read_text())
    with (entry / _SIZES).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        sizes = {part: arrays[part] for part in listing.parts}
    by_index: dict[str, Any] = {
        key: {
            part: {int(index): value for index, value in manifest[key][part].items()}
            for part in listing.parts
        }
        for key in ("bad", "replaced", "damaged")
    }
    for part, files in listing.parts.items():
        if sizes[part].shape != (len(files), 2):
            raise ValueError(f"{part} is incomplete")
        for index, name in by_index["replaced"][part].items():
            copy = read_header(os.fsencode(entry / name), (entry / name).stat().st_size)
            if not copy.complete or [copy.height, copy.width] != sizes[part][index].tolist():
                raise ValueError(f"{name} is incomplete")
    return Scan(entry, sizes, **by_index, num_inspected=int(manifest["num_inspected"]))
