"""Decoded images on disk: one folder per content, complete or not there, and checked before it is used."""

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.atomic_io import sha256
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.files.in_use import is_in_use

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_BUILDING = "building-"
_ABANDONED_S = 24 * 3600


BadImages = dict[str, dict[int, str]]  # why an image cannot be read, by part and number


@dataclass(frozen=True, eq=False)
class CachedArrays:
    """An entry of the cache.

    Attributes:
        arrays: by name, (N, H, W, 3) uint8 memory maps (copy-on-write).
        histogram: (3, 256) int64.
        bad: rows of the arrays that hold no image.
    """

    arrays: dict[str, np.ndarray]
    histogram: np.ndarray
    bad: BadImages


def read_entry(
    folder: Path, shapes: dict[str, tuple[int, ...]], *, discard_damaged: bool
) -> CachedArrays | None:
    """Open a cache entry; None where there is none that can be used: with a warning, if there is a damaged one.

    Every byte is compared with the SHA-256 in the manifest: one pass over the files, which also brings them into memory.

    Args:
        folder: the entry.
        shapes: of its arrays, by name.
        discard_damaged: remove a damaged entry, to make room for another.
    """
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        arrays = {}
        for name, shape in shapes.items():
            path = folder / f"{name}.npy"
            if sha256(path) != manifest["sha256"][name]:
                raise ValueError(f"{path.name} has changed since it was written")
            # private pages: shared by all processes of the machine, and writeable, as torch wants its memory
            arrays[name] = np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
            if arrays[name].shape != shape:
                raise ValueError(f"{path.name} has another shape")
        histogram = np.array(manifest["histogram"], np.int64)
        if histogram.shape != (NUM_CHANNELS, 256):
            raise ValueError("the histogram is incomplete")
        bad = {name: {int(row): reason for row, reason in manifest["bad"][name].items()} for name in shapes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("the cache %s is damaged (%s)", folder, error)
        if discard_damaged:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    return CachedArrays(arrays, histogram, bad)


@contextlib.contextmanager
def new_entry(folder: Path) -> Iterator[Path]:
    """A folder to fill, beside its place: renamed there when all is well, removed otherwise. Where there is one by now, that stays:
    another process was faster.

    Raises:
        OSError: it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    building = folder.parent / f"{_BUILDING}{secrets.token_hex(8)}"
    building.mkdir()
    try:
        yield building
        building.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_entry(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    fill: Callable[[dict[str, np.ndarray]], tuple[np.ndarray, BadImages]],
) -> None:
    """Make a cache entry of arrays.

    Args:
        folder: the entry.
        shapes: of the uint8 arrays, by name.
        fill: writes the arrays, which it is handed, and returns the histogram and the bad rows to keep with them.

    Raises:
        OSError: the folder cannot be written, or the disk is full. Space is reserved first, so this comes before the work.
    """
    with new_entry(folder) as building:
        arrays = {name: _create_array(building / f"{name}.npy", shape) for name, shape in shapes.items()}
        histogram, bad = fill(arrays)
        del arrays  # unmapped: what is hashed is what is in the files
        digests = {name: sha256(building / f"{name}.npy") for name in shapes}
        (building / MANIFEST).write_text(
            json.dumps({"sha256": digests, "histogram": histogram.tolist(), "bad": bad})
        )


def remove_older(folder: Path, prefix: str) -> None:
    """Remove the entries beside FOLDER that are named like it but for the hash after PREFIX, what the files were before they changed, and
    that nobody uses: see `InUse`."""
    for other in folder.parent.iterdir():
        alike = other.name.startswith(prefix) and len(other.name) == len(folder.name)
        if alike and other != folder and (other / MANIFEST).exists() and not is_in_use(other / MANIFEST):
            shutil.rmtree(other, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove what a process that was killed left half-built."""
    for other in parent.glob(_BUILDING + "*"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(other, ignore_errors=True)


def _create_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        try:
            # writing to a map of a sparse file ends in SIGBUS when the disk is full
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve
                raise
    return array
