"""Describes the files of a data set and their classes: `Files` of one part, `Listing` of all parts."""

import hashlib
import logging
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.files.image_formats import FORMAT_NAMES
from pipeline.data.files.paths import Paths, printable
from pipeline.errors import UserError

_log = logging.getLogger(__name__)

LAYOUT = "expected: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val/ for test/)"
LISTING_THREADS = 16  # the threads wait for the file system, which may be on a network
_FILE = f"{FORMAT_NAMES} file"
_MAX_NAMED = 10


@dataclass(frozen=True, eq=False)
class Files:
    """The image files of one part, class after class.

    Attributes:
        paths: relative to `data.root`.
        labels: (N,) int64.
        num_bytes: (N,) int64; -1: not a file that can be read.
        mtime_ns: (N,) int64, time of the last change.
    """

    paths: Paths
    labels: np.ndarray
    num_bytes: np.ndarray
    mtime_ns: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def class_sizes(self, num_classes: int) -> np.ndarray:
        """Count the files of each class: (C,) int64."""
        return np.bincount(self.labels, minlength=num_classes)

    def take(self, indices: np.ndarray) -> "Files":
        """Copy the files with these indices."""
        return Files(
            self.paths.take(indices), self.labels[indices], self.num_bytes[indices], self.mtime_ns[indices]
        )

    def without(self, indices: Collection[int]) -> "Files":
        """Return the files without those with these indices."""
        if not indices:
            return self
        return self.take(np.setdiff1d(np.arange(len(self)), np.array(list(indices), np.int64)))


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a data set.

    Attributes:
        root: the paths are relative to this folder.
        parts: `train` and `test`.
        classes: names in label order, as in the class folders or list files.
        sources: the class folders' parent or the list file of each part.
        from_lists: True if the files come from list files, False if they come from class folders.
    """

    root: Path
    parts: dict[str, Files]
    classes: tuple[str, ...]
    sources: dict[str, Path]
    from_lists: bool = False

    def __len__(self) -> int:
        return sum(len(files) for files in self.parts.values())

    def without(self, dropped: Mapping[str, Collection[int]]) -> "Listing":
        """Return the listing without the files with these indices, by part.

        Raises:
            UserError: no training image of a class is left, or no test image at all.
        """
        if not any(dropped.values()):
            return self
        parts = {name: files.without(dropped.get(name, ())) for name, files in self.parts.items()}
        listing = Listing(self.root, parts, self.classes, self.sources, self.from_lists)
        check_classes(listing)
        return listing

    def key(self) -> str:
        """Return 16 hex digits that change with the state of the files: paths, labels, sizes and times."""
        digest = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        for name, files in self.parts.items():
            digest.update(f"\0\0{name}\0{len(files)}\0".encode())
            digest.update(files.paths.block)
            for numbers in (files.paths.ends, files.labels, files.num_bytes, files.mtime_ns):
                digest.update(numbers.tobytes())
        return digest.hexdigest()[:16]


def check_classes(listing: Listing) -> None:
    """Check the classes. A class without test images gives a warning.

    Raises:
        UserError: a class without training images, fewer than two classes, or no test images.
    """
    classes = listing.classes
    without_files = {
        part: [classes[label] for label in np.flatnonzero(files.class_sizes(len(classes)) == 0)]
        for part, files in listing.parts.items()
    }
    lists, train, test = listing.from_lists, listing.sources["train"], listing.sources["test"]
    train_key, test_key = ("data.train_list", "data.test_list") if lists else ("data.root", "data.root")
    if without_files["train"]:
        empty = name_classes(without_files["train"])
        remedy = (
            "add lines, or number the classes without a gap" if lists else "add some, or remove the folder"
        )
        raise UserError(f"{train_key}: no {_FILE} for {empty} in {train}; {remedy}")
    if len(listing.classes) < 2:
        only, layout = name_classes(listing.classes), "" if lists else f". {LAYOUT}"
        raise UserError(f"{train_key}: {train} holds one class, {only}; training needs at least two{layout}")
    if not len(listing.parts["test"]):
        remedy = "add lines of other files" if lists else LAYOUT
        raise UserError(f"{test_key}: no {_FILE} in {test}; {remedy}")
    if without_files["test"]:
        untested = name_classes(without_files["test"])
        _log.warning(
            "%s: %s has no images of %s: the test accuracy does not cover them", test_key, test, untested
        )


def name_classes(names: Sequence[str]) -> str:
    """Return "class a" or "classes a, b", at most ten names, for a message."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    listed = ", ".join(printable(name) for name in names[:_MAX_NAMED])
    return f"class{'es' if len(names) > 1 else ''} {listed}{more}"


def size_and_mtime(entry: os.DirEntry[str] | Path) -> tuple[int, int]:
    """Return the bytes of a file and its time of change in nanoseconds; -1 and 0 if it cannot be read."""
    try:
        status = entry.stat()
    except OSError:  # a broken link
        return -1, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, 0)
