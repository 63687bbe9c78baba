"""Reads list files, `data.train_list` and `data.test_list`, and checks their labels."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.config import FolderData
from pipeline.data.files.listing import LISTING_THREADS, Files, Listing, name_classes, size_and_mtime
from pipeline.data.files.paths import Paths, printable
from pipeline.errors import UserError

_Lines = dict[str, list[tuple[str, str]]]  # the (path, label) pairs of each part


def read_path_lists(root: Path, config: FolderData) -> Listing:
    """Read both list files, and the size and time of every file that they name.

    A line is a path (absolute, or relative to the root), blanks, and a label without blanks. The labels of
    both files are all numbers from 0 on, or all class names.

    Raises:
        UserError: a list file cannot be read or is not as described.
    """
    lines, label_of, classes = _read_labels(config)
    parts = {part: _read_status(root, pairs, label_of) for part, pairs in lines.items()}
    return Listing(root, parts, classes, _list_paths(config), from_lists=True)


def read_list_classes(config: FolderData) -> tuple[str, ...]:
    """Read the names of the classes from both list files, in label order. Looks at no image.

    Raises:
        UserError: a list file cannot be read or is not as `read_path_lists` describes it.
    """
    return _read_labels(config)[-1]


def _list_paths(config: FolderData) -> dict[str, Path]:
    return {
        "train": Path(str(config.train_list)).expanduser(),
        "test": Path(str(config.test_list)).expanduser(),
    }


def _read_labels(config: FolderData) -> tuple[_Lines, dict[str, int], tuple[str, ...]]:
    """Return the lines of each part, the integer of each label, and the names of the classes."""
    root = Path(config.root).expanduser()
    lines = {part: _read_list(f"data.{part}_list", path, root) for part, path in _list_paths(config).items()}
    labels = {label for pairs in lines.values() for _, label in pairs}
    _check_not_negative(lines)
    if all(label.isascii() and label.isdigit() for label in labels):
        _check_largest_label(labels, len(lines["train"]))
        classes = [str(number) for number in range(max(map(int, labels)) + 1)]
        return lines, {label: int(label) for label in labels}, tuple(classes)
    classes = sorted({label for _, label in lines["train"]})
    unknown = sorted(labels - set(classes))
    if unknown:
        raise UserError(
            f"data.test_list: has {name_classes(unknown)}, unknown to data.train_list; "
            "add training images or remove them"
        )
    return lines, {label: number for number, label in enumerate(classes)}, tuple(classes)


def _check_not_negative(lines: _Lines) -> None:
    """Refuse a negative number as a label."""
    negative = [
        (label, part)
        for part, pairs in lines.items()
        for label in {label for _, label in pairs}
        if re.fullmatch(r"-[0-9]+", label)
    ]
    if negative:
        label, part = min(negative, key=lambda item: item[0])
        raise UserError(
            f"data.{part}_list: the label {label} is below 0; number the classes from 0 on, "
            "and leave out files without a label"
        )


def _check_largest_label(labels: Collection[str], num_train: int) -> None:
    """Refuse a label that is too large: some class below it would have no training image.

    This check comes before a name is made for each class.
    """
    largest = max(labels, key=lambda label: (len(label.lstrip("0")), label.lstrip("0")))
    if len(largest.lstrip("0")) > len(str(num_train)) or int(largest) >= num_train:
        shown = largest if len(largest) <= 20 else f"{largest[:17]}..."
        raise UserError(
            f"data.train_list: the label {shown} means as many classes and one more, but there are "
            f"{num_train} training images; number the classes from 0 on, or give their names"
        )


def _read_list(key: str, path: Path, root: Path) -> list[tuple[str, str]]:
    """Return the (path, label) pairs of a list file, all paths relative to the root."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"{key}: cannot read {path} ({error.strerror})") from None
    pairs: list[tuple[str, str]] = []
    root_prefix, up = f"{os.path.abspath(root)}/", os.path.relpath("/", os.path.realpath(root))
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            match = re.fullmatch(r"(.*?)[ \t]+([^ \t]+)", line.strip())
            if match is None or "\0" in line:
                raise UserError(f"{key}: {path}:{number}: {printable(line)!r} is not a `path label` line")
            name, label = match.groups()
            if name.startswith("/"):
                name = name.removeprefix(root_prefix) if name.startswith(root_prefix) else up + name
            pairs.append((name, label))
    if not pairs:
        raise UserError(f"{key}: {path} lists no files; write a `path label` line for each")
    return pairs


def _read_status(root: Path, pairs: Sequence[tuple[str, str]], label_of: Mapping[str, int]) -> Files:
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        numbers = np.array(list(pool.map(lambda pair: size_and_mtime(root / pair[0]), pairs)), np.int64)
    labels = np.array([label_of[label] for _, label in pairs], np.int64)
    return Files(Paths.of(name for name, _ in pairs), labels, numbers[:, 0].copy(), numbers[:, 1].copy())
