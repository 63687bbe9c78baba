"""Class folders: `ROOT/train/CLASS/*` and `ROOT/test/CLASS/*`, decoded once and cached."""

import hashlib
import itertools
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.cache import CachedArrays, read_entry, remove_older, write_entry
from pipeline.data.decode import decode_files
from pipeline.data.image_set import NUM_CHANNELS, ImageSet, RawSplits
from pipeline.data.statistics import channel_histogram
from pipeline.errors import UserError

_log = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMAT_VERSION = 1  # raise it when the same files decode to other pixels or the cache's layout changes
_MAX_NAMED = 10
_LAYOUT = "expected are ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val/ for test/; .jpeg and .png too)"

FoundFile = tuple[str, int, int]  # path relative to the root, bytes (-1: not a file that can be read), mtime in nanoseconds
ClassFiles = dict[str, list[FoundFile]]


def load_folder(root: Path, cache_dir: Path | None, image_size: int, num_threads: int, *, is_main: bool = True) -> RawSplits:
    """Read class folders.

    A class is a folder in `train/`; classes are in the order of their names, the images of a class in the order of their paths, folders
    within a class included. Files that are no JPEG or PNG by name, and hidden ones, are passed over. `test/` comes before `val/`; a
    class may be missing there, with a warning. How images are brought to one size, `decode_image` says.

    The decoded images are kept in `cache_dir`, by default `ROOT/.quickres`, under a hash of all paths, sizes and modification
    times, so that a changed file is noticed; what was kept of the files as they were before is removed then.

    Args:
        root: `data.root`.
        cache_dir: `data.cache_dir`.
        image_size: height and width to deliver.
        num_threads: threads to decode in.
        is_main: whether this process may decode and write.

    Raises:
        UserError: folders that are not as described, images that cannot be read, a cache that cannot be written.
    """
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}; {_LAYOUT}")
    train = _find_class_files(root, "train")
    test_folder = "test" if (root / "test").is_dir() else "val"
    test = _find_class_files(root, test_folder)
    _check_classes(root, test_folder, train, test)
    labels = {name: label for label, name in enumerate(train)}
    parts = {"train": train, "test": {name: test.get(name, []) for name in labels}}
    key = _content_key(parts, image_size)
    # the caches of several data sets can share a folder
    owner = "" if cache_dir is None else f"{root.resolve().name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]}-"
    prefix = f"{owner}{image_size}px-"
    entry = (root / ".quickres" if cache_dir is None else cache_dir) / f"{prefix}{key}"
    shapes = {part: (_count(files), image_size, image_size, NUM_CHANNELS) for part, files in parts.items()}
    cached = read_entry(entry, shapes, discard_damaged=is_main)
    if cached is None:
        assert is_main, f"no cache {entry}: the main process has to build it first"
        cached = _build(root, entry, parts, shapes, num_threads)
        remove_older(entry, prefix)

    def image_set(part: str) -> ImageSet:
        paths = tuple(path for path, _, _ in itertools.chain.from_iterable(parts[part].values()))
        numbers = np.repeat(np.arange(len(labels)), [len(files) for files in parts[part].values()])
        return ImageSet(cached.arrays[part], numbers, paths)

    return RawSplits(image_set("train"), image_set("test"), tuple(labels), cached.histogram)


def _count(files: ClassFiles) -> int:
    return sum(len(found) for found in files.values())


def _find_class_files(root: Path, part: str) -> ClassFiles:
    """The image files of every class of a part, classes by name and files by path."""
    folder = root / part
    if not folder.is_dir():
        wanted = "train/" if part == "train" else "test/ or val/"
        raise UserError(f"data.root: {root} has no folder {wanted}; {_LAYOUT}")
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        files = {name: sorted(_walk(str(folder / name), f"{part}/{name}", ())) for name in names}
    except OSError as error:
        raise UserError(f"data.root: cannot list {error.filename} ({error.strerror})") from None
    if not files:
        raise UserError(f"data.root: {folder} holds no class folders; {_LAYOUT}")
    return files


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
            if entry.is_dir():
                yield from _walk(entry.path, path, (*above, identity))
            elif entry.name.lower().endswith(_SUFFIXES):
                yield path, *_size_and_time(entry)


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        found = entry.stat()
    except OSError:  # a broken link
        return -1, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, 0)


def _check_classes(root: Path, test_folder: str, train: ClassFiles, test: ClassFiles) -> None:
    empty = [name for name, files in train.items() if not files]
    if empty:
        raise UserError(
            f"data.root: no .jpg, .jpeg or .png file for {_named(empty)} in {root / 'train'}; add some, or remove the class folder"
        )
    if len(train) < 2:
        raise UserError(f"data.root: {root / 'train'} holds one class, {_named(list(train))}; training needs at least two. {_LAYOUT}")
    unknown = [name for name, files in test.items() if files and name not in train]
    if unknown:
        raise UserError(
            f"data.root: {root / test_folder} has {_named(unknown)}, unknown to {root / 'train'}; add training images or remove them"
        )
    if not _count(test):
        raise UserError(f"data.root: no .jpg, .jpeg or .png file in {root / test_folder}; {_LAYOUT}")
    untested = [name for name in train if not test.get(name)]
    if untested:
        _log.warning("data.root: %s has no images of %s: the test accuracy says nothing about them", root / test_folder, _named(untested))


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"class{'es' if len(names) > 1 else ''} {', '.join(_printable(name) for name in names[:_MAX_NAMED])}{more}"


def _printable(name: str) -> str:
    """A file name as it can be written to any terminal or log: bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _content_key(parts: dict[str, ClassFiles], image_size: int) -> str:
    """16 hex digits over all that decides the decoded pixels and their order."""
    digest = hashlib.sha256(f"{_FORMAT_VERSION} {image_size}".encode())
    for part, classes in parts.items():
        digest.update(f"\0\0{part}\0{len(classes)}".encode())
        for path, size, mtime_ns in itertools.chain.from_iterable(classes.values()):
            digest.update(b"\0%b\0%d\0%d" % (os.fsencode(path), size, mtime_ns))
    return digest.hexdigest()[:16]


def _build(root: Path, entry: Path, parts: dict[str, ClassFiles], shapes: dict[str, tuple[int, ...]], num_threads: int) -> CachedArrays:
    """Decode all files into a new cache entry and open it."""

    def fill(arrays: dict[str, np.ndarray]) -> np.ndarray:
        bad = []
        for part, classes in parts.items():
            paths = [root / path for path, _, _ in itertools.chain.from_iterable(classes.values())]
            bad += decode_files(paths, arrays[part], num_threads, f"decoding {part} images")
        if bad:
            listed = "".join(f"\n  {_printable(str(path))}: {reason}" for path, reason in bad[:_MAX_NAMED])
            more = f"\n  and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
            raise UserError(
                f"data.root: {len(bad)} of {sum(map(_count, parts.values()))} images cannot be read; replace or remove them:{listed}{more}"
            )
        return channel_histogram(arrays["train"])

    try:
        write_entry(entry, shapes, fill)
    except OSError as error:
        raise UserError(
            f"data.cache_dir: cannot write {entry} ({error.strerror or error}); "
            "set data.cache_dir to a folder with room, that you may write to"
        ) from None
    cached = read_entry(entry, shapes, discard_damaged=False)
    if cached is None:
        raise UserError(f"data.cache_dir: {entry} is damaged and cannot be replaced; remove it, or set data.cache_dir to another folder")
    return cached
