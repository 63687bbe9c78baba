"""`python -m pipeline check-data ROOT`: every image of a folder decoded, what is bad listed, sizes and classes counted and drawn."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.files.decode import images_of_any_size, open_rgb, try_all
from pipeline.data.files.listing import Listing, list_files, on_one_line, printable
from pipeline.data.files.scan import MAX_PIXELS


@dataclass(frozen=True, eq=False)
class Checked:
    """What a folder holds.

    Attributes:
        listing: the files.
        sizes: (N, 2) int32 by part, height and width in pixels, upright; 0 where a file is bad.
        bad: (path, reason) of the files that cannot be trained on.
    """

    listing: Listing
    sizes: dict[str, np.ndarray]
    bad: list[tuple[str, str]]

    def class_counts(self, part: str) -> np.ndarray:
        """(C,) int64, good files of each class."""
        good = self.sizes[part][:, 0] > 0
        return np.bincount(self.listing.parts[part].labels[good], minlength=len(self.listing.classes))

    @property
    def good_sizes(self) -> np.ndarray:
        """(M, 2) int32, of all parts."""
        sizes = np.concatenate(list(self.sizes.values()))
        return sizes[sizes[:, 0] > 0]


def check_folder(config: DataConfig) -> Checked:
    """Decode every file, in `data.num_threads` threads, with a progress bar on a terminal.

    Raises:
        UserError: folders or lists that are not as described.
    """
    listing = list_files(Path(config.root).expanduser(), config)
    sizes, bad = {}, []
    with images_of_any_size():
        for part, files in listing.parts.items():
            found = np.zeros((len(files), 2), np.int32)

            def decode(index: int, part: str = part, found: np.ndarray = found) -> None:
                image = open_rgb(listing.root / listing.parts[part].paths[index])
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
                found[index] = image.height, image.width

            failed = try_all(range(len(files)), decode, config.num_threads, f"decoding {part} images")
            bad += [(str(listing.root / files.paths[index]), reason) for index, reason in failed.items()]
            sizes[part] = found
    return Checked(listing, sizes, bad)


def write_report(checked: Checked, folder: Path) -> list[Path]:
    """Write `bad_images.txt` (path, with control characters as escapes, and reason, with a tab between), and `class_counts.csv` (class,
    train, test).

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bad = folder / "bad_images.txt"
    bad.write_bytes(
        "".join(f"{on_one_line(path)}\t{reason}\n" for path, reason in checked.bad).encode(
            "utf-8", "surrogateescape"
        )
    )
    counts = folder / "class_counts.csv"
    rows = zip(
        checked.listing.classes, checked.class_counts("train"), checked.class_counts("test"), strict=True
    )
    with counts.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "train", "test"])
        writer.writerows((printable(name), train, test) for name, train, test in rows)
    return [bad, counts]


def describe(checked: Checked) -> Sequence[str]:
    """What was found, in a few lines."""
    sizes, classes = checked.good_sizes, len(checked.listing.classes)
    lines = []
    for part in checked.listing.parts:
        counts = checked.class_counts(part)
        each = (
            f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        )
        lines.append(f"{part}: {counts.sum():,} images, {each} in each of {classes:,} classes")
    if len(sizes):
        (low, middle, high) = np.quantile(sizes, [0, 0.5, 1], axis=0).astype(int)[:, ::-1].tolist()
        span = "" if low == high else f" to {high[0]}x{high[1]}, median {middle[0]}x{middle[1]}"
        lines.append(f"width x height: {low[0]}x{low[1]}{span}")
    lines.append(f"{len(checked.bad):,} of {len(checked.listing):,} files cannot be trained on")
    return lines
