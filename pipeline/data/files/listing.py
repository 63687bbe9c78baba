"""Describes the files of a data set and their classes: `Files` of one part, `Listing` of all parts."""

import hashlib
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.files.file_part import FilePart
from pipeline.data.files.folders import propose_folders
from pipeline.data.files.image_formats import FORMAT_NAMES
from pipeline.data.files.paths import Paths, printable
from pipeline.errors import UserError

LAYOUT = "expected: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val/ for test/)"
LISTING_THREADS = 16  # the threads wait for the file system, which may be on a network
_FILE = f"{FORMAT_NAMES} file"
_MAX_NAMED = 10
# Remedies, by the kind of the listing: for a part without images, and for a class without training images.
_MORE_FILES = {"lists": "add lines of other files", "shards": "give other shards"}
_MORE_CLASSES = {
    "folders": "add some, or remove the folder",
    "lists": "add lines, or number the classes without a gap",
    "shards": "give all shards of the training images, or number the classes without a gap",
}


@dataclass(frozen=True, eq=False)
class Members:
    """The places of images that lie in shards: tar files, or files of their own form.

    Attributes:
        shards: the files to read, absolute.
        shard: (N,) int32, index in `shards` of the file that holds each image.
        offset: (N,) int64, of the first byte of each image in that file.
    """

    shards: tuple[Path, ...]
    shard: np.ndarray
    offset: np.ndarray

    def take(self, indices: np.ndarray) -> "Members":
        """Copy the places with these indices."""
        return Members(self.shards, self.shard[indices], self.offset[indices])


@dataclass(frozen=True, eq=False)
class Files:
    """The image files of one part, in the order of the sample ids.

    Attributes:
        paths: relative to `data.root`; of an image in a shard, `SHARD:NAME`.
        labels: (N,) int64.
        num_bytes: (N,) int64; -1: not a file that can be read.
        mtime_ns: (N,) int64, time of the last change, modulo 2**64.
        identity: (N,) int64, equal for two paths that lead to the same file.
        members: the places of images that lie in shards; None: each image is a file.
    """

    paths: Paths
    labels: np.ndarray
    num_bytes: np.ndarray
    mtime_ns: np.ndarray
    identity: np.ndarray
    members: Members | None = None

    @classmethod
    def of(cls, paths: Paths, labels: np.ndarray, numbers: np.ndarray) -> "Files":
        """Put files together from their paths, labels and (N, 3) int64 numbers of `read_status`."""
        num_bytes, mtime_ns, identity = (numbers[:, column].copy() for column in range(3))
        return cls(paths, labels, num_bytes, mtime_ns, identity)

    def __len__(self) -> int:
        return len(self.labels)

    def class_sizes(self, num_classes: int) -> np.ndarray:
        """Count the files of each class: (C,) int64."""
        return np.bincount(self.labels, minlength=num_classes)

    def take(self, indices: np.ndarray) -> "Files":
        """Copy the files with these indices."""
        numbers = (self.num_bytes[indices], self.mtime_ns[indices], self.identity[indices])
        members = None if self.members is None else self.members.take(indices)
        return Files(self.paths.take(indices), self.labels[indices], *numbers, members)

    def file(self, root: Path, index: int) -> Path | FilePart:
        """Return the file, or the part of a file, that holds an image; ROOT is `data.root`."""
        if self.members is None:
            return root / self.paths[index]
        shard, offset = self.members.shards[self.members.shard[index]], int(self.members.offset[index])
        return FilePart(shard, offset, int(self.num_bytes[index]), str(root / self.paths[index]))

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
        parts: `train` and `test`, or `test` alone.
        classes: names in label order, as in the class folders or list files.
        sources: the class folders' parent, the list file or the pattern of the shards of each part.
        kind: where the files come from.
        lines: of list files, (N,) int64 by part: the line that names each file.
        problems: what is not as it must be for training, a sentence each.
        warnings: what a person should know, a sentence each.
        without_label: of shards, `SHARD:NAME` by part of the images that have no label, and are left out.
    """

    root: Path
    parts: dict[str, Files]
    classes: tuple[str, ...]
    sources: dict[str, Path]
    kind: Literal["folders", "lists", "shards"] = "folders"
    lines: Mapping[str, np.ndarray] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    without_label: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def num_found(self) -> int:
        """Count the files, and the images without a label."""
        return len(self) + sum(map(len, self.without_label.values()))

    @property
    def from_lists(self) -> bool:
        """Return True if the files come from list files."""
        return self.kind == "lists"

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
        lines = {name: np.delete(lines, list(dropped.get(name, ()))) for name, lines in self.lines.items()}
        listing = replace(self, parts=parts, lines=lines)
        for problem in find_problems(listing):
            raise UserError(problem)
        return listing

    def file(self, part: str, index: int) -> Path | FilePart:
        """Return the file, or the part of a file, that holds an image."""
        return self.parts[part].file(self.root, index)

    def key_of(self, part: str) -> str:
        """Return the key of the config that names the files of a part."""
        return {"lists": f"data.{part}_list", "shards": f"data.{part}_shards"}.get(self.kind, "data.root")

    def place(self, part: str, index: int) -> str:
        """Return the line of a list file that names a file, for a message; empty without list files."""
        if not self.from_lists:
            return ""
        return f" (line {self.lines[part][index]} of {printable(self.sources[part])})"

    def key(self) -> str:
        """Return 16 hex digits that change with the state of the files: paths, labels, sizes and times."""
        digest = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        for name, files in self.parts.items():
            digest.update(f"\0\0{name}\0{len(files)}\0".encode())
            digest.update(files.paths.block)
            for numbers in (files.paths.ends, files.labels, files.num_bytes, files.mtime_ns):
                digest.update(numbers.tobytes())
            if files.members is not None:
                digest.update(files.members.offset.tobytes())
        return digest.hexdigest()[:16]


def find_problems(listing: Listing) -> list[str]:
    """Return a sentence for each reason why a listing cannot be used.

    The reasons are those that the listing has already, classes without training images, fewer than two
    classes, and no test images. A listing without the part `train` needs test images only.
    """
    problems = list(listing.problems)
    if "train" in listing.parts:
        problems += _training_problems(listing)
    test, key = listing.sources["test"], listing.key_of("test")
    if not len(listing.parts["test"]) and not listing.problems:
        taken = [source.name for source in listing.sources.values()]
        other = propose_folders(listing.root, "test", taken, listing.classes)
        remedy = _MORE_FILES.get(listing.kind, LAYOUT + other)
        problems.append(f"{key}: no {_FILE} in {test}; {remedy}")
    return problems


def _training_problems(listing: Listing) -> list[str]:
    problems: list[str] = []
    train, key = listing.sources["train"], listing.key_of("train")
    empty = _classes_without_files(listing, "train")
    if empty:
        remedy = _MORE_CLASSES[listing.kind]
        problems.append(f"{key}: no {_FILE} for {name_classes(empty)} in {train}; {remedy}")
    if len(listing.classes) < 2:
        only, layout = name_classes(listing.classes), f". {LAYOUT}" if listing.kind == "folders" else ""
        problems.append(f"{key}: {train} holds one class, {only}; training needs at least two{layout}")
    return problems


def find_warnings(listing: Listing) -> list[str]:
    """Return a sentence for each thing that a person should know, and that does not prevent training."""
    warnings = list(listing.warnings)
    untested = _classes_without_files(listing, "test")
    if untested and len(listing.parts["test"]):
        key, test = listing.key_of("test"), listing.sources["test"]
        warnings.append(
            f"{key}: {test} has no images of {name_classes(untested)}: the test accuracy does not cover them"
        )
    return warnings


def _classes_without_files(listing: Listing, part: str) -> list[str]:
    sizes = listing.parts[part].class_sizes(len(listing.classes))
    return [listing.classes[label] for label in np.flatnonzero(sizes == 0)]


def describe_line(root: Path) -> str:
    """Describe a line of a list file, for a message."""
    return (
        f"a line of a list is a path, absolute or from data.root={printable(root)}, then blanks or a tab, "
        "then a label without blanks (`cats/1.jpg cat`); there is no header and no comment"
    )


def name_classes(names: Sequence[str]) -> str:
    """Return "class a" or "classes a, b", at most ten names, for a message."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    listed = ", ".join(printable(name) for name in names[:_MAX_NAMED])
    return f"class{'es' if len(names) > 1 else ''} {listed}{more}"


def read_status(entry: os.DirEntry[str] | Path) -> tuple[int, int, int]:
    """Return the bytes of a file, its time of change in nanoseconds, and a number that identifies it.

    They are -1, 0 and 0 if the file cannot be read. A time before 1677 or after 2262 does not fit into an
    int64, so all times are taken modulo 2**64: they are only compared with one another.
    """
    try:
        status = entry.stat()
    except OSError:  # a broken link
        return -1, 0, 0
    if not stat.S_ISREG(status.st_mode):
        return -1, 0, 0
    # some network file systems number all files alike: size and time tell most of them apart
    identity = hash((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return status.st_size, (status.st_mtime_ns + 2**63) % 2**64 - 2**63, identity
