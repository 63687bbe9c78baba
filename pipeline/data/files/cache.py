"""Keeps decoded images on disk. An entry is a folder that is complete or absent, and is checked when read."""

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

from pipeline.atomic_io import sha256, write_json
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.files.first_time import note_first_time

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_BUILDING = "building-"
_ABANDONED_S = 24 * 3600
# A run marks its entry as used once, when it starts, and may open files of it until it ends. So this age must
# be longer than any run. (A file that is mapped already stays readable on Linux after it was removed.)
_UNUSED_S = 30 * 24 * 3600


BadImages = dict[str, dict[int, str]]  # the reason why an image cannot be read, by part and index


@dataclass(frozen=True, eq=False)
class CachedArrays:
    """An entry of the cache that holds arrays.

    Attributes:
        arrays: by name, (N, H, W, 3) uint8 memory maps (copy-on-write).
        histogram: (3, 256) int64.
        bad: rows of the arrays that hold no image.
    """

    arrays: dict[str, np.ndarray]
    histogram: np.ndarray
    bad: BadImages


def read_entry(
    entry: Path, shapes: dict[str, tuple[int, ...]], *, discard_damaged: bool
) -> CachedArrays | None:
    """Open a cache entry. Return None if it does not exist or is damaged; a damaged entry gives a warning.

    Every byte is compared with the SHA-256 in the manifest. This one pass also reads the files into memory.

    Args:
        entry: the folder.
        shapes: of its arrays, by name.
        discard_damaged: remove a damaged entry, so that a new one can be written.
    """
    if not entry.exists():
        return None
    mark_used(entry)
    try:
        manifest = json.loads((entry / MANIFEST).read_text())
        arrays = {
            name: _open_array(entry / f"{name}.npy", shape, manifest["sha256"][name])
            for name, shape in shapes.items()
        }
        histogram = np.array(manifest["histogram"], np.int64)
        if histogram.shape != (NUM_CHANNELS, 256):
            raise ValueError("the histogram is incomplete")
        bad = {name: {int(row): reason for row, reason in manifest["bad"][name].items()} for name in shapes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        report_damaged(entry, error, discard=discard_damaged)
        return None
    return CachedArrays(arrays, histogram, bad)


def _open_array(path: Path, shape: tuple[int, ...], digest: str) -> np.ndarray:
    if sha256(path) != digest:
        raise ValueError(f"{path.name} has changed since it was written")
    # copy-on-write pages: all processes of the machine share them, and they are writeable, as torch requires
    array = np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    if array.shape != shape:
        raise ValueError(f"{path.name} has another shape")
    return array


def report_damaged(entry: Path, error: Exception, *, discard: bool) -> None:
    """Warn that an entry is damaged and, with DISCARD, remove it."""
    _log.warning("the cache %s is damaged (%s)", entry, error)
    if discard:
        shutil.rmtree(entry, ignore_errors=True)


@contextlib.contextmanager
def new_entry(entry: Path) -> Iterator[Path]:
    """Give an empty folder to fill. Rename it to ENTRY at the end, or remove it after an error.

    If another process has made the entry in the meantime, that entry stays.

    Raises:
        OSError: the folder cannot be written.
    """
    note_first_time()
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(entry.parent)
    building = entry.parent / f"{_BUILDING}{secrets.token_hex(8)}"
    building.mkdir()
    try:
        yield building
        building.rename(entry)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_entry(
    entry: Path,
    shapes: dict[str, tuple[int, ...]],
    fill: Callable[[dict[str, np.ndarray]], tuple[np.ndarray, BadImages]],
) -> None:
    """Make a cache entry of arrays.

    Args:
        entry: the folder to make.
        shapes: of the uint8 arrays, by name.
        fill: writes into the arrays that it is given, and returns the histogram and the bad rows to store.

    Raises:
        OSError: the folder cannot be written, or the disk is full. Space is reserved before the work starts.
    """
    with new_entry(entry) as building:
        arrays = {name: _create_array(building / f"{name}.npy", shape) for name, shape in shapes.items()}
        histogram, bad = fill(arrays)
        del arrays  # unmap the files, so that the hashes are those of the files' content
        digests = {name: sha256(building / f"{name}.npy") for name in shapes}
        manifest = {"sha256": digests, "histogram": histogram.tolist(), "bad": bad}
        write_json(building / MANIFEST, manifest)


def mark_used(entry: Path) -> None:
    """Note the time at which a run opened this entry: `remove_unused` reads it."""
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(entry / MANIFEST)


def remove_unused(entry: Path, prefix: str) -> None:
    """Remove the entries of older states of the same files that no run has opened for 30 days.

    The names of these entries differ from that of ENTRY only in the hash, which follows PREFIX.
    """
    for other in entry.parent.iterdir():
        same_files = other.name.startswith(prefix) and len(other.name) == len(entry.name)
        if same_files and other != entry and _age_s(other / MANIFEST) > _UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove unfinished entries of processes that were killed."""
    for other in parent.glob(_BUILDING + "*"):
        if _age_s(other) > _ABANDONED_S:
            shutil.rmtree(other, ignore_errors=True)


def _age_s(path: Path) -> float:
    """Return the seconds since the last change of a file; 0 if it does not exist."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _create_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        try:
            # without reserved space, a write into the memory map ends in SIGBUS when the disk is full
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve
                raise
    return array
