"""Lists the files of class folders: `ROOT/train/CLASS/*.jpg` and `ROOT/test/CLASS/*.jpg`."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.data.files.image_formats import SUFFIXES
from pipeline.data.files.listing import (
    LAYOUT,
    LISTING_THREADS,
    Files,
    Listing,
    name_classes,
    size_and_mtime,
)
from pipeline.data.files.paths import Paths
from pipeline.errors import UserError

_ClassFiles = tuple[Paths, np.ndarray]  # of one class: paths, and (N, 2) int64 bytes and times of change
_NO_FILES: _ClassFiles = Paths(b"", np.empty(0, np.int64)), np.empty((0, 2), np.int64)


def list_class_folders(root: Path) -> Listing:
    """List the image files in `train/` and in `test/` or `val/`.

    A class is a folder in `train/`. Classes are in the order of their names, and the images of a class in the
    order of their paths; folders inside a class belong to it. Hidden files, and files whose name does not end
    like that of a JPEG or PNG file, are skipped. `test/` is used if it holds classes (the one of ImageNet
    holds images without labels), otherwise `val/`.

    Raises:
        UserError: folders that are not as described.
        OSError: a folder cannot be read.
    """
    candidates = [name for name in ("test", "val") if (root / name).is_dir()]
    default = candidates[0] if candidates else "val"
    test_name = next((name for name in candidates if _class_names(root / name)), default)
    train, test = _find_files(root, "train"), _find_files(root, test_name)
    unknown = [name for name, files in test.items() if len(files[1]) and name not in train]
    if unknown and len(train) > 1:  # `check_classes` refuses a data set of one class
        raise UserError(
            f"data.root: {root / test_name} has {name_classes(unknown)}, unknown to {root / 'train'}; "
            "add training images or remove them"
        )
    parts = {
        "train": _concatenate([train[name] for name in train]),
        "test": _concatenate([test.get(name, _NO_FILES) for name in train]),
    }
    return Listing(root, parts, tuple(train), {"train": root / "train", "test": root / test_name})


def _concatenate(classes: Sequence[_ClassFiles]) -> Files:
    numbers = np.concatenate([numbers for _, numbers in classes])
    labels = np.repeat(np.arange(len(classes)), [len(numbers) for _, numbers in classes])
    paths = Paths.joined([paths for paths, _ in classes])
    return Files(paths, labels, numbers[:, 0].copy(), numbers[:, 1].copy())


def _find_files(root: Path, part: str) -> dict[str, _ClassFiles]:
    """Find the image files of every class of a part; classes are sorted by name, files by path."""
    folder = root / part
    if not folder.is_dir():
        wanted = "train/" if part == "train" else "test/ or val/"
        raise UserError(f"data.root: {root} has no folder {wanted}; {LAYOUT}")
    names = _class_names(folder)
    if not names:
        raise UserError(f"data.root: {folder} holds no class folders; {LAYOUT}")
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        files = pool.map(lambda name: _find_class_files(str(folder / name), f"{part}/{name}"), names)
        return dict(zip(names, files, strict=True))


def _class_names(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_dir(entry))


def _find_class_files(folder: str, relative: str) -> _ClassFiles:
    files = sorted(_walk(folder, relative, ()))
    numbers = np.array([(size, mtime) for _, size, mtime in files], np.int64).reshape(-1, 2)
    return Paths.of(path for path, _, _ in files), numbers


def _walk(folder: str, relative: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int, int]]:
    """Yield path, bytes and time of change of the image files in a folder and in the folders below it.

    Links are followed, except a link to a folder that holds the link.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
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
                yield path, *size_and_mtime(entry)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
