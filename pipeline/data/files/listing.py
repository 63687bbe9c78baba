"""Which files a data set of class folders, or of list files, consists of, and which class each belongs to. Reads no images."""

import hashlib
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.files.paths import Paths
from pipeline.errors import UserError

_log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_NAMED = 10
_FILE = ".jpg, .jpeg or .png file"
_LAYOUT = (
    "expected are ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val/ for test/; .jpeg and .png too)"
)
_LISTING_THREADS = 16  # they wait for the file system, which may be a network away

FoundFile = tuple[
    str, int, int
]  # path relative to the root, bytes (-1: not a file that can be read), mtime in nanoseconds


@dataclass(frozen=True, eq=False)
class Files:
    """The image files of one part, class after class.

    Attributes:
        paths: relative to `data.root`.
        labels: (N,) int64.
        num_bytes: (N,) int64; -1: no file that can be read.
        mtime_ns: (N,) int64, time of the last change.
    """

    paths: Paths
    labels: np.ndarray
    num_bytes: np.ndarray
    mtime_ns: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Files":
        """The files with these ids, copied."""
        return Files(
            self.paths.take(indices), self.labels[indices], self.num_bytes[indices], self.mtime_ns[indices]
        )


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a data set.

    Attributes:
        root: that the paths are relative to.
        parts: `train` and `test`.
        classes: names in label order, as folders and lists have them.
        sources: by part, the folder or the list file that its files were found in.
        listed: whether they were found in list files.
    """

    root: Path
    parts: dict[str, Files]
    classes: tuple[str, ...]
    sources: dict[str, Path]
    listed: bool = False

    def __len__(self) -> int:
        return sum(len(files) for files in self.parts.values())

    def without(self, dropped: Mapping[str, Collection[int]]) -> "Listing":
        """Without the files with these ids, by part.

        Raises:
            UserError: a class has no training image left, or the test set none at all.
        """
        if not any(dropped.values()):
            return self
        parts = {name: _drop(files, dropped.get(name, ())) for name, files in self.parts.items()}
        listing = Listing(self.root, parts, self.classes, self.sources, self.listed)
        check_classes(listing)
        return listing

    def key(self) -> str:
        """16 hex digits over everything that tells one state of the files from another: paths, labels, sizes and times."""
        digest = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        for name, files in self.parts.items():
            digest.update(f"\0\0{name}\0{len(files)}\0".encode())
            digest.update(files.paths.block)
            for numbers in (files.paths.ends, files.labels, files.num_bytes, files.mtime_ns):
                digest.update(numbers.tobytes())
        return digest.hexdigest()[:16]


def _drop(files: Files, indices: Collection[int]) -> Files:
    return (
        files.take(np.setdiff1d(np.arange(len(files)), np.array(list(indices), np.int64)))
        if indices
        else files
    )


def list_files(root: Path, config: DataConfig) -> Listing:
    """List class folders, or the files that `data.train_list` and `data.test_list` name.

    A class is a folder in `train/`; classes are in the order of their names, the images of a class in the order of their paths, folders
    within a class included. Files that are no JPEG or PNG by name, and hidden ones, are passed over. `test/` comes before `val/`, if
    it holds classes (ImageNet's own holds images without labels); a class may be missing there, with a warning.

    A list file has lines of a path (absolute, or relative to the root) and, behind the last blank, a label: a number from 0 on in all
    lines, or a class name in all.

    Raises:
        UserError: folders or lists that are not as described.
    """
    try:
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}; {_LAYOUT}")
        listing = (
            _list_classes(root)
            if config.train_list is None or config.test_list is None
            else _read_lists(root, config)
        )
    except OSError as error:
        raise UserError(f"data.root: cannot list {error.filename} ({error.strerror})") from None
    check_classes(listing)
    return listing


def _list_classes(root: Path) -> Listing:
    there = [name for name in ("test", "val") if (root / name).is_dir()]
    test_name = next((name for name in there if _class_folders(root / name)), there[0] if there else "val")
    train, test = _find_class_files(root, "train"), _find_class_files(root, test_name)
    unknown = [name for name, files in test.items() if len(files[1]) and name not in train]
    if unknown and len(train) > 1:  # one class is no data set: `check_classes` says so
        raise UserError(
            f"data.root: {root / test_name} has {_named(unknown)}, unknown to {root / 'train'}; add training images or remove them"
        )
    parts = {
        "train": _join([train[name] for name in train]),
        "test": _join([test.get(name, _NONE) for name in train]),
    }
    return Listing(root, parts, tuple(train), {"train": root / "train", "test": root / test_name})


_Found = tuple[Paths, np.ndarray]  # of one class: paths, and (N, 2) int64 bytes and times
_NONE: _Found = Paths(b"", np.empty(0, np.int64)), np.empty((0, 2), np.int64)


def _join(classes: Sequence[_Found]) -> Files:
    numbers = np.concatenate([found for _, found in classes])
    labels = np.repeat(np.arange(len(classes)), [len(found) for _, found in classes])
    return Files(
        Paths.joined([paths for paths, _ in classes]), labels, numbers[:, 0].copy(), numbers[:, 1].copy()
    )


def _find_class_files(root: Path, part: str) -> dict[str, _Found]:
    """The image files of every class of a part, classes by name and files by path."""
    folder = root / part
    if not folder.is_dir():
        wanted = "train/" if part == "train" else "test/ or val/"
        raise UserError(f"data.root: {root} has no folder {wanted}; {_LAYOUT}")
    names = _class_folders(folder)
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        files = dict(
            zip(names, pool.map(lambda name: _find(str(folder / name), f"{part}/{name}"), names), strict=True)
        )
    if not files:
        raise UserError(f"data.root: {folder} holds no class folders; {_LAYOUT}")
    return files


def _class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_dir(entry))


def _find(folder: str, relative: str) -> _Found:
    found = sorted(_walk(folder, relative, ()))
    numbers = np.array([(size, time) for _, size, time in found], np.int64).reshape(-1, 2)
    return Paths.of(path for path, _, _ in found), numbers


def _walk(folder: str, relative: str, above: tuple[tuple[int, int], ...]) -> Iterator[FoundFile]:
    """The image files in a folder and those below it; links are followed, but not back into a folder that leads here."""
    here = os.stat(folder)
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        raise UserError(f"data.root: the link {folder} leads back to a folder above it; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{relative}/{entry.name}"
            if _is_dir(entry):
                yield from _walk(entry.path, path, (*above, identity))
            elif entry.name.lower().endswith(SUFFIXES):
                yield path, *_size_and_time(entry)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, but to itself
        return False


def _size_and_time(entry: os.DirEntry[str] | Path) -> tuple[int, int]:
    try:
        found = entry.stat()
    except OSError:  # a broken link
        return -1, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, 0)


def _read_lists(root: Path, config: DataConfig) -> Listing:
    lines, number_of, classes = _read_labels(config)
    parts = {part: _stat_all(root, pairs, number_of) for part, pairs in lines.items()}
    return Listing(root, parts, classes, _list_paths(config), listed=True)


def _list_paths(config: DataConfig) -> dict[str, Path]:
    return {
        "train": Path(str(config.train_list)).expanduser(),
        "test": Path(str(config.test_list)).expanduser(),
    }


def read_list_classes(config: DataConfig) -> tuple[str, ...]:
    """Names of the classes, in label order, that `data.train_list` and `data.test_list` speak of. Looks at no image.

    Raises:
        UserError: lists that are not as `list_files` describes them.
    """
    return _read_labels(config)[-1]


def _read_labels(
    config: DataConfig,
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, int], tuple[str, ...]]:
    """The (path, label) pairs of each part, the number of each label, and the names of the classes."""
    root = Path(config.root).expanduser()
    lines = {part: _read_list(f"data.{part}_list", path, root) for part, path in _list_paths(config).items()}
    labels = {label for pairs in lines.values() for _, label in pairs}
    below = sorted(label for label in labels if re.fullmatch(r"-[0-9]+", label))
    if below:
        key = next(
            f"data.{part}_list"
            for part, pairs in lines.items()
            if any(label == below[0] for _, label in pairs)
        )
        raise UserError(
            f"{key}: the label {below[0]} is below 0; number the classes from 0 on, and leave out files without a label"
        )
    if all(label.isascii() and label.isdigit() for label in labels):
        _check_numbers(labels, len(lines["train"]))
        classes = [str(number) for number in range(max(map(int, labels)) + 1)]
        number_of = {label: int(label) for label in labels}
    else:
        classes = sorted({label for _, label in lines["train"]})
        number_of = {label: number for number, label in enumerate(classes)}
        unknown = sorted(labels - set(classes))
        if unknown:
            raise UserError(
                f"data.test_list: has {_named(unknown)}, unknown to data.train_list; add training images or remove them"
            )
    return lines, number_of, tuple(classes)


def _check_numbers(labels: Collection[str], num_train: int) -> None:
    """Refuse a label so large that some class below it can have no training image, before a name is made for each class."""
    largest = max(labels, key=lambda label: (len(label.lstrip("0")), label.lstrip("0")))
    if len(largest.lstrip("0")) > len(str(num_train)) or int(largest) >= num_train:
        shown = largest if len(largest) <= 20 else f"{largest[:17]}..."
        raise UserError(
            f"data.train_list: the label {shown} means as many classes and one more, but there are {num_train} training images; "
            "number the classes from 0 on, or give their names"
        )


def _read_list(key: str, path: Path, root: Path) -> list[tuple[str, str]]:
    """The (path, label) pairs of a list file, all paths relative to the root."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"{key}: cannot read {path} ({error.strerror})") from None
    pairs: list[tuple[str, str]] = []
    inside, climb = f"{os.path.abspath(root)}/", os.path.relpath("/", os.path.realpath(root))
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            parts = re.fullmatch(r"(.*?)[ \t]+([^ \t]+)", line.strip())
            if parts is None or "\0" in line:
                raise UserError(f"{key}: {path}:{number}: {printable(line)!r} is no `path label` line")
            name, label = parts.groups()
            if name.startswith("/"):
                name = name.removeprefix(inside) if name.startswith(inside) else climb + name
            pairs.append((name, label))
    if not pairs:
        raise UserError(f"{key}: {path} lists no files; write a `path label` line for each")
    return pairs


def _stat_all(root: Path, pairs: Sequence[tuple[str, str]], number_of: Mapping[str, int]) -> Files:
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        numbers = np.array(list(pool.map(lambda pair: _size_and_time(root / pair[0]), pairs)), np.int64)
    labels = np.array([number_of[label] for _, label in pairs], np.int64)
    return Files(Paths.of(name for name, _ in pairs), labels, numbers[:, 0].copy(), numbers[:, 1].copy())


def check_classes(listing: Listing) -> None:
    """
    Raises:
        UserError: a class without training images, fewer than two classes, no test images.
    """
    counts = {
        part: np.bincount(files.labels, minlength=len(listing.classes))
        for part, files in listing.parts.items()
    }
    train, test = listing.sources["train"], listing.sources["test"]
    keys = {part: f"data.{part}_list" if listing.listed else "data.root" for part in listing.parts}
    empty = [name for name, count in zip(listing.classes, counts["train"], strict=True) if not count]
    if empty:
        remedy = (
            "add lines, or number the classes without a gap"
            if listing.listed
            else "add some, or remove the class folder"
        )
        raise UserError(f"{keys['train']}: no {_FILE} for {_named(empty)} in {train}; {remedy}")
    if len(listing.classes) < 2:
        layout = "" if listing.listed else f". {_LAYOUT}"
        raise UserError(
            f"{keys['train']}: {train} holds one class, {_named(listing.classes)}; training needs at least two{layout}"
        )
    if not len(listing.parts["test"]):
        raise UserError(
            f"{keys['test']}: no {_FILE} in {test}; {'add lines of other files' if listing.listed else _LAYOUT}"
        )
    untested = [name for name, count in zip(listing.classes, counts["test"], strict=True) if not count]
    if untested:
        _log.warning(
            "%s: %s has no images of %s: the test accuracy says nothing about them",
            keys["test"],
            test,
            _named(untested),
        )


def read_class_names(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What classes are called: of each line of the file the first word (with a tab in the line: what is before it) is a class, the
    rest its name. Lines for other classes are passed over.

    Raises:
        UserError: the file cannot be read, or a class is not in it.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.class_names: cannot read {path} ({error}); it needs a line `CLASS name` for each class, in UTF-8"
        ) from None
    split = [line.strip().split("\t" if "\t" in line else None, 1) for line in lines if line.strip()]
    names = {pair[0].strip(): pair[-1].strip() for pair in split}
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(f"data.class_names: {path} has no line for {_named(missing)}; add `CLASS name` lines")
    return tuple(names[name] for name in classes)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"class{'es' if len(names) > 1 else ''} {', '.join(printable(name) for name in names[:_MAX_NAMED])}{more}"


def printable(name: str | Path) -> str:
    """A file name as it can be written to any terminal or log: on one line, and bytes that are no UTF-8 as escapes."""
    return on_one_line(os.fsencode(name).decode("utf-8", "backslashreplace"))


def on_one_line(name: str) -> str:
    """A file name with its control characters as escapes."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in name
    )
