"""Reads list files, `data.train_list` and `data.test_list`, and checks their labels."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config import FolderData, path_of
from pipeline.data.files.labels import fraction_among
from pipeline.data.files.listing import (
    LISTING_THREADS,
    Files,
    Listing,
    describe_line,
    name_classes,
    read_status,
)
from pipeline.data.files.paths import Paths, from_root, printable
from pipeline.errors import UserError

_MAX_NAMED = 10


class _Line(NamedTuple):
    """One line of a list file; the path is relative to the root."""

    number: int
    path: str
    label: str


_Lines = dict[str, list[_Line]]  # of each part


def read_path_lists(root: Path, config: FolderData) -> Listing:
    """Read both list files, and the size and time of every file that they name.

    A line is a path (absolute, or relative to the root), blanks, and a label without blanks. The labels of
    both files are all numbers from 0 on, or all class names.

    Raises:
        UserError: a list file cannot be read or is not as described.
    """
    lines, label_of, classes = _read_labels(config)
    parts = {part: _find_files(root, of_part, label_of) for part, of_part in lines.items()}
    numbers = {part: np.array([line.number for line in of_part], np.int64) for part, of_part in lines.items()}
    return Listing(root, parts, classes, _list_paths(config), "lists", numbers)


def read_test_list(
    root: Path,
    config: FolderData,
    number_classes: Callable[[Sequence[str], Sequence[str]], Mapping[str, int]],
) -> tuple[Path, Files, np.ndarray]:
    """Read `data.test_list`, and the size and time of every file that it names, without `data.train_list`.

    Args:
        root: the paths are relative to this folder.
        config: the section `data`.
        number_classes: returns the labels of the classes, from all of them and from those with images, which
            are the same here.

    Returns:
        The list file, its files, and the line of each: (N,) int64.

    Raises:
        UserError: the list file cannot be read or is not as `read_path_lists` describes it.
    """
    path = _list_paths(config)["test"]
    lines = _read_list("data.test_list", path, root)
    _check_headers({"test": lines}, root, config)
    _check_numbers({"test": lines})
    if all(line.label.isascii() and line.label.isdigit() for line in lines):
        lines = [line._replace(label=line.label.lstrip("0") or "0") for line in lines]
    classes = sorted({line.label for line in lines}, key=lambda label: (label.isdigit(), len(label), label))
    numbers = np.array([line.number for line in lines], np.int64)
    return path, _find_files(root, lines, number_classes(classes, classes)), numbers


def read_list_classes(config: FolderData) -> tuple[str, ...]:
    """Read the names of the classes from both list files, in label order. Looks at no image.

    Raises:
        UserError: a list file cannot be read or is not as `read_path_lists` describes it.
    """
    return _read_labels(config)[-1]


def _list_paths(config: FolderData) -> dict[str, Path]:
    return {
        "train": path_of("data.train_list", str(config.train_list)),
        "test": path_of("data.test_list", str(config.test_list)),
    }


def _read_labels(config: FolderData) -> tuple[_Lines, dict[str, int], tuple[str, ...]]:
    """Return the lines of each part, the integer of each label, and the names of the classes."""
    root = path_of("data.root", config.root)
    lines = {part: _read_list(f"data.{part}_list", path, root) for part, path in _list_paths(config).items()}
    labels = {line.label for of_part in lines.values() for line in of_part}
    _check_headers(lines, root, config)
    _check_numbers(lines)
    if all(label.isascii() and label.isdigit() for label in labels):
        _check_largest_label(labels, len(lines["train"]))
        classes = [str(number) for number in range(max(map(int, labels)) + 1)]
        return lines, {label: int(label) for label in labels}, tuple(classes)
    classes = sorted({line.label for line in lines["train"]})
    unknown = sorted(labels - set(classes))
    if unknown:
        _check_first_file(lines["train"], root, config)
        first = next(line.number for line in lines["test"] if line.label in unknown)
        raise UserError(
            f"data.test_list: has {name_classes(unknown)}, unknown to data.train_list (line {first} of "
            f"{_list_paths(config)['test']}); add training images or remove them; {describe_line(root)}"
        )
    return lines, {label: number for number, label in enumerate(classes)}, tuple(classes)


def _check_headers(lines: _Lines, root: Path, config: FolderData) -> None:
    """Refuse a header and comments: a class of their last word would have no image.

    A header is a first line that names no file, with a word as label that no other line has.
    """
    heads = {
        part: [
            line for line in of_part if line.path.startswith("#") or (line is of_part[0] and _is_header(line))
        ]
        for part, of_part in lines.items()
    }
    numbers = {(part, line.number) for part, of_part in heads.items() for line in of_part}
    labels = {
        line.label
        for part, of_part in lines.items()
        for line in of_part
        if (part, line.number) not in numbers
    }
    for part, of_part in heads.items():
        for line in of_part:
            if line.label not in labels and not (root / line.path).exists():
                raise _names_no_file(part, line, f"remove it; {describe_line(root)}", config)


def _check_first_file(train: Sequence[_Line], root: Path, config: FolderData) -> None:
    """Refuse a first line that names no file and holds a further blank: its label may be of two words."""
    line = train[0]
    if len(line.path.split()) > 1 and not (root / line.path).exists():
        raise _names_no_file("train", line, describe_line(root), config)


def _names_no_file(part: str, line: _Line, remedy: str, config: FolderData) -> UserError:
    """Return the error of a line of a list whose file does not exist."""
    text = printable(f"{line.path} {line.label}")
    place = f"{_list_paths(config)[part]}:{line.number}"
    return UserError(f"data.{part}_list: {place}: {text!r} names no file; {remedy}")


def _is_header(line: _Line) -> bool:
    return not {*line.path} & {".", "/"} and not re.fullmatch(r"-?[0-9]+", line.label)


def _check_numbers(lines: _Lines) -> None:
    """Refuse a negative number, or a fraction among whole numbers, as a label."""
    negative = [
        (label, part)
        for part, of_part in lines.items()
        for label in {line.label for line in of_part}
        if re.fullmatch(r"-[0-9]+", label)
    ]
    if negative:
        label, part = min(negative, key=lambda item: item[0])
        raise UserError(
            f"data.{part}_list: the label {label} is below 0; number the classes from 0 on, "
            "and leave out files without a label"
        )
    for part, of_part in lines.items():
        wrong = fraction_among({line.label for line in of_part})
        if wrong is not None:
            raise UserError(
                f"data.{part}_list: the label {wrong} is no whole number, and other labels are; correct it"
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


def _read_list(key: str, path: Path, root: Path) -> list[_Line]:
    """Return the lines of a list file."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"{key}: cannot read {path} ({error.strerror})") from None
    lines: list[_Line] = []
    wrong: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            match = re.fullmatch(r"(.*?)[ \t]+([^ \t]+)", line.strip())
            if match is None or "\0" in line:
                wrong.append(f"{path}:{number}: {printable(line.strip())!r} is not a `path label` line")
            else:
                lines.append(_Line(number, from_root(root, match[1]), match[2]))
    if wrong:
        more = f"\n  and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        listed = "\n  ".join(wrong[:_MAX_NAMED])
        raise UserError(f"{key}: {listed}{more}{'; ' if len(wrong) == 1 else chr(10)}{describe_line(root)}")
    if not lines:
        raise UserError(f"{key}: {path} lists no files; write a `path label` line for each")
    return lines


def _find_files(root: Path, lines: Sequence[_Line], label_of: Mapping[str, int]) -> Files:
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        numbers = np.array(list(pool.map(lambda line: read_status(root / line.path), lines)), np.int64)
    labels = np.array([label_of[line.label] for line in lines], np.int64)
    return Files.of(Paths.of(line.path for line in lines), labels, numbers)
