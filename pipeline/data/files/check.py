"""Implements `python -m pipeline check-data ROOT`: decodes every image of a data set and lists bad ones."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.atomic_io import write_whole
from pipeline.config import FileData, path_of
from pipeline.data.files.class_names import read_class_names
from pipeline.data.files.copies import find_copies
from pipeline.data.files.decode import images_of_any_size, open_rgb
from pipeline.data.files.file_part import ImageFile, hash_image
from pipeline.data.files.jpeg_damage import find_damaged_jpegs
from pipeline.data.files.list_files import find_files
from pipeline.data.files.listing import Listing, describe_line, find_problems, find_warnings
from pipeline.data.files.many import Portable, try_all
from pipeline.data.files.paths import counted, on_one_line, printable
from pipeline.data.files.scan import refuse_huge
from pipeline.errors import Stopped, UserError
from pipeline.process.interrupt import keep_results
from pipeline.process.worker import workers_kept


@dataclass(frozen=True, eq=False)
class Checked:
    """The result of checking a data set.

    Attributes:
        listing: the files.
        sizes: (N, 2) int32 by part, height and width in pixels, upright; 0 if a file is bad.
        bad: (path, reason) of the bad files: those that cannot be read, those that are damaged inside, and
            images in shards without a label.
        problems: the other reasons why the data set cannot be trained on, a sentence each.
        warnings: what a person should know, a sentence each.
    """

    listing: Listing
    sizes: dict[str, np.ndarray]
    bad: list[tuple[str, str]]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def class_counts(self, part: str) -> np.ndarray:
        """Count the good files of each class: (C,) int64."""
        good = self.sizes[part][:, 0] > 0
        return np.bincount(self.listing.parts[part].labels[good], minlength=len(self.listing.classes))

    @property
    def good_sizes(self) -> np.ndarray:
        """Return the sizes of the good files of all parts: (M, 2) int32."""
        sizes = np.concatenate(list(self.sizes.values()))
        return sizes[sizes[:, 0] > 0]


@workers_kept()
def check_files(config: FileData) -> Checked:
    """Decode every file, in `data.num_threads` threads, with a progress bar on a terminal.

    Raises:
        UserError: there are no training classes, or a list file or a shard cannot be read.
        Stopped: Ctrl-C; its `partial` are lines on the files so far.
    """
    listing = find_files(config)
    sizes = {part: np.zeros((len(files), 2), np.int32) for part, files in listing.parts.items()}
    hashes = {part: np.zeros(len(files), np.int64) for part, files in listing.parts.items()}
    reasons: dict[str, dict[int, str]] = {part: {} for part in listing.parts}
    part = ""
    keep_results()
    try:
        for part in listing.parts:
            reasons[part] = _decode_part(listing, part, sizes[part], hashes[part], config.num_threads)
    except Stopped as stopped:
        reasons[part] = stopped.partial
        raise Stopped(_describe_part(listing, sizes, reasons)) from None
    _add_damage(listing, reasons, config.num_threads)
    for part in listing.parts:
        sizes[part][list(reasons[part])] = hashes[part][list(reasons[part])] = 0
    bad = _list_bad(listing, reasons)
    warnings = [*find_warnings(listing), *find_copies(listing, hashes)]
    if bad and listing.from_lists:
        warnings.append(describe_line(listing.root))
    problems = [*find_problems(listing), *_find_bad_names(config, listing)]
    return Checked(listing, sizes, bad, problems, warnings)


def _list_broken(listing: Listing, reasons: dict[str, dict[int, str]]) -> list[tuple[str, str]]:
    """Return path and reason of the files that were read and are bad, in the order of the listing."""
    return [
        (str(listing.file(part, index)), reason + listing.place(part, index))
        for part, of_part in reasons.items()
        for index, reason in sorted(of_part.items())
    ]


def _list_bad(listing: Listing, reasons: dict[str, dict[int, str]]) -> list[tuple[str, str]]:
    """Return path and reason of all bad files; those without label, which are not read, are last."""
    bad = _list_broken(listing, reasons)
    unlabelled = [name for of_part in listing.without_label.values() for name in of_part]
    return bad + [(str(listing.root / name), "it has no label") for name in unlabelled]


def _describe_part(
    listing: Listing, sizes: dict[str, np.ndarray], reasons: dict[str, dict[int, str]]
) -> list[str]:
    """Return lines on the files that were decoded before the check was stopped."""
    bad = _list_broken(listing, reasons)
    count = sum(int((of_part[:, 0] > 0).sum()) for of_part in sizes.values()) + len(bad)
    lines = [f"stopped after {count:,} of {len(listing):,} files; {len(bad):,} of these are bad"]
    if num_unlabelled := listing.num_found - len(listing):
        lines[0] += (
            f"; {counted(num_unlabelled, 'other')} {'has' if num_unlabelled == 1 else 'have'} no label"
        )
    return [*lines, *(f"  {printable(path)}: {reason}" for path, reason in bad)]


def _find_bad_names(config: FileData, listing: Listing) -> list[str]:
    """Return what is wrong in the file of `data.class_names`: nothing, or one sentence."""
    if config.class_names is None:
        return []
    try:
        read_class_names(path_of("data.class_names", config.class_names), listing.classes)
    except UserError as error:
        return [str(error)]
    return []


def _decode_part(
    listing: Listing, part: str, sizes: np.ndarray, hashes: np.ndarray, num_threads: int
) -> dict[int, str]:
    """Find the sizes of one part, and a hash of the content of each file; return the reasons for bad ones."""

    def keep(index: int, found: tuple[int, int, int]) -> None:
        hashes[index], *sizes[index] = found

    files = listing.parts[part]
    return try_all(
        *(range(len(files)), _decode_one, num_threads, f"decoding {part} images"),
        portable=Portable(keep, partial(files.file, listing.root)),
        within=images_of_any_size,
    )


def _decode_one(file: ImageFile) -> tuple[int, int, int]:
    """Return a hash of the content of a file, and the height and width of its image."""
    image = open_rgb(file)
    refuse_huge(image.width, image.height)
    return int.from_bytes(hash_image(file)[:8], signed=True), image.height, image.width


def _add_damage(listing: Listing, reasons: dict[str, dict[int, str]], num_processes: int) -> None:
    """Add the JPEG files that Pillow decodes though they are damaged inside."""
    good = [
        (part, index)
        for part, files in listing.parts.items()
        for index in range(len(files))
        if index not in reasons[part]
    ]
    paths = [listing.file(part, index) for part, index in good]
    for row, text in find_damaged_jpegs(paths, num_processes).items():
        part, index = good[row]
        reasons[part][index] = f"damaged inside: {text}"


def write_report(checked: Checked, folder: Path) -> list[Path]:
    """Write the two tables of a check.

    `bad_images.txt` has a line for each bad file: the path, with control characters as escapes, a tab, and
    the reason. `class_counts.csv` has the columns class, train and test.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bad = folder / "bad_images.txt"
    lines = "".join(f"{on_one_line(path)}\t{reason}\n" for path, reason in checked.bad)
    write_whole(bad, lines.encode("utf-8", "surrogateescape"))
    counts, table = folder / "class_counts.csv", io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class", "train", "test"])
    names = map(_cell, checked.listing.classes)
    writer.writerows(zip(names, checked.class_counts("train"), checked.class_counts("test"), strict=True))
    write_whole(counts, table.getvalue())
    return [bad, counts]


def _cell(name: str) -> str:
    """Return a name as a cell of a table: spreadsheets would run one that looks like a formula."""
    text = printable(name)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def describe(checked: Checked) -> Sequence[str]:
    """Describe the result in a few lines: images in each class, sizes, bad files."""
    sizes, classes = checked.good_sizes, len(checked.listing.classes)
    lines = []
    for part in checked.listing.parts:
        counts = checked.class_counts(part)
        low, high = counts.min(), counts.max()
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        images, of_classes = counted(int(counts.sum()), "image"), counted(classes, "class", "classes")
        lines.append(f"{part}: {images}, {each} in each of {of_classes}")
    if len(sizes):
        (low, middle, high) = np.quantile(sizes, [0, 0.5, 1], axis=0).astype(int)[:, ::-1].tolist()
        span = "" if low == high else f" to {high[0]}x{high[1]}, median {middle[0]}x{middle[1]}"
        lines.append(f"width x height: {low[0]}x{low[1]}{span}")
    lines.append(f"{len(checked.bad):,} of {checked.listing.num_found:,} files are bad")
    return lines
