"""Lists the files of class folders: `ROOT/train/CLASS/*.jpg` and `ROOT/test/CLASS/*.jpg`."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import FolderData
from pipeline.data.files.folders import LeftOut, class_folders_in, is_dir, is_of_system, propose_folders
from pipeline.data.files.image_formats import SUFFIXES
from pipeline.data.files.listing import LAYOUT, LISTING_THREADS, Files, Listing, name_classes, read_status
from pipeline.data.files.paths import Paths, from_root, printable
from pipeline.errors import UserError

_ClassFiles = tuple[Paths, np.ndarray]  # of one class: paths, and (N, 3) int64 as from `read_status`
_NO_FILES: _ClassFiles = Paths(b"", np.empty(0, np.int64)), np.empty((0, 3), np.int64)
_Part = dict[str, _ClassFiles]


def list_class_folders(root: Path, config: FolderData) -> Listing:
    """List the image files in `data.train_folder` and in `data.test_folder`.

    A class is a folder in the training folder, one of `data.classes` if these are given. Classes are in the
    order of their names, and the images of a class in the order of their paths; folders inside a class belong
    to it. Hidden files, files whose name does not end like that of an image, and folders that a system makes
    for itself are left out and counted.

    Returns:
        The listing; its `problems` tell what is wrong with the test folder.

    Raises:
        UserError: there are no training classes, or no folder of one of `data.classes`, or only one of
            these; or a link leads back to a folder above it.
        OSError: a folder cannot be read.
    """
    names = {"train": config.train_folder, "test": config.test_folder or default_test_folder(root)}
    folders = {part: from_root(root, name) for part, name in names.items()}
    left_out, problems = LeftOut(), []
    train, test = (_find_files(root, folder, left_out, config.classes) for folder in folders.values())
    _check_chosen(root / folders["train"], config.classes, train)
    if not train:
        raise UserError(_no_classes(root, "train", names["train"], config))
    if not test:
        problems.append(_no_classes(root, "test", names["test"], config, train))
    unknown = [name for name, (_, numbers) in test.items() if len(numbers) and name not in train]
    if unknown and len(train) > 1:  # `find_problems` tells of a data set of one class
        other = propose_folders(root, "test", folders.values(), train)
        problems.append(
            f"data.root: {root / names['test']} has {name_classes(unknown)}, unknown to "
            f"{root / names['train']}; add training images or remove them{other}"
        )
    parts = {
        "train": _concatenate(list(train.values())),
        "test": _concatenate([test.get(name, _NO_FILES) for name in train]),
    }
    sources = {part: root / name for part, name in names.items()}
    warnings = tuple(left_out.describe(root))
    return Listing(root, parts, tuple(train), sources, problems=tuple(problems), warnings=warnings)


def default_test_folder(root: Path) -> str:
    """Return `test` if it holds folders, otherwise `val`: the `test` of ImageNet has no labels."""
    candidates = [name for name in ("test", "val") if (root / name).is_dir()]
    default = candidates[0] if candidates else "val"
    return next((name for name in candidates if class_folders_in(root / name)), default)


def count_class_folders(root: Path, config: FolderData) -> int:
    """Count the classes of the training folder, without looking into them.

    Raises:
        UserError: there is no such folder, or no folder of one of `data.classes`, or only one of these.
    """
    folder = from_root(root, config.train_folder)
    if not (root / folder).is_dir():
        other = propose_folders(root, "train", ())
        raise UserError(
            f"data.root: no folder {root / folder} to count the classes in; "
            f"set data.root, or data.dataset=synthetic data.num_classes=N{other}"
        )
    found = _chosen(class_folders_in(root / folder), config.classes)
    _check_chosen(root / folder, config.classes, found)
    return len(found)


def _chosen(names: list[str], classes: Collection[str]) -> list[str]:
    """Return the class folders to use; CLASSES is `data.classes`."""
    return [name for name in names if name in classes] if classes else names


def _check_chosen(folder: Path, classes: Sequence[str], found: Collection[str]) -> None:
    missing = [name for name in classes if name not in found]
    if missing and folder.is_dir():
        known = name_classes(class_folders_in(folder))
        raise UserError(
            f"data.classes: {folder} has no class folder {', '.join(map(printable, missing))}; it has {known}"
        )
    if len(set(classes)) == 1:
        raise UserError(
            f"data.classes: names one class, {printable(classes[0])}; training needs at least two"
        )


def _no_classes(root: Path, part: str, folder: str, config: FolderData, classes: Collection[str] = ()) -> str:
    """Return the message for a part without class folders."""
    given = config.train_folder != "train" if part == "train" else config.test_folder is not None
    key = f"data.{part}_folder" if given else "data.root"
    taken = [folder] if part == "train" else [folder, config.train_folder]
    other = propose_folders(root, part, taken, classes)
    if (root / folder).is_dir():
        return f"{key}: {root / folder} holds no class folders; {LAYOUT}{other}"
    wanted = f"{folder}/" if given or part == "train" else "test/ or val/"
    return f"{key}: {root} has no folder {wanted}; {LAYOUT}{other}"


def list_test_folder(
    root: Path,
    config: FolderData,
    number_classes: Callable[[Sequence[str], Sequence[str]], Mapping[str, int]],
) -> tuple[Path, Files, tuple[str, ...]]:
    """List the image files in `data.test_folder`, without looking at the training folder.

    Args:
        root: `data.root`.
        config: the section `data`.
        number_classes: returns the labels of the classes, from all of them and from those with images.

    Returns:
        The folder, its files, and what a person should know, a sentence each.

    Raises:
        UserError: there is no such folder, or it holds no folder of a class.
        OSError: a folder cannot be read.
    """
    folder, left_out = config.test_folder or default_test_folder(root), LeftOut()
    classes = _find_files(root, from_root(root, folder), left_out, config.classes)
    used = [name for name, (_, numbers) in classes.items() if len(numbers)]
    if not classes:
        raise UserError(_no_classes(root, "test", folder, config))
    label_of = number_classes(list(classes), used)
    files = _concatenate([classes[name] for name in used])
    labels = np.array([label_of[name] for name in used], np.int64)
    return root / folder, replace(files, labels=labels[files.labels]), tuple(left_out.describe(root))


def _concatenate(classes: Sequence[_ClassFiles]) -> Files:
    numbers = np.concatenate([_NO_FILES[1], *(numbers for _, numbers in classes)])
    labels = np.repeat(np.arange(len(classes)), [len(numbers) for _, numbers in classes])
    return Files.of(Paths.joined([paths for paths, _ in classes]), labels, numbers)


def _find_files(root: Path, part: str, left_out: LeftOut, classes: Collection[str]) -> _Part:
    """Find the image files of the classes of a part; classes are sorted by name, files by path.

    Args:
        root: `data.root`.
        part: folder in it.
        left_out: counts what is no image.
        classes: as `data.classes`.

    The result is empty if there is no such folder, or if it holds no class folders.
    """
    folder = root / part
    if not folder.is_dir():
        return {}
    names = _chosen(class_folders_in(folder), classes)
    left_out.add_beside_classes(folder)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        found = list(pool.map(lambda name: _find_class_files(str(folder / name), f"{part}/{name}"), names))
    for _, others in found:
        left_out.update(others)
    return {name: files for name, (files, _) in zip(names, found, strict=True)}


def _find_class_files(folder: str, relative: str) -> tuple[_ClassFiles, LeftOut]:
    left_out = LeftOut()
    files = sorted(_walk(folder, relative, (), left_out))
    numbers = np.array([status for _, status in files], np.int64).reshape(-1, 3)
    return (Paths.of(path for path, _ in files), numbers), left_out


def _walk(
    folder: str, relative: str, above: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield path and `read_status` of the image files in a folder and in the folders below it.

    Links are followed, except a link to a folder that holds the link.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise UserError(f"data.root: the link {folder} leads back to a folder above it; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            name, hidden = entry.name, entry.name.startswith(".")
            if is_dir(entry):
                if hidden or is_of_system(name):
                    left_out.add_folder(name)
                else:
                    yield from _walk(entry.path, f"{relative}/{name}", (*above, identity), left_out)
            elif not hidden and name.lower().endswith(SUFFIXES):
                yield f"{relative}/{name}", read_status(entry)
            else:
                left_out.add_file(name)
