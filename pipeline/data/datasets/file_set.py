"""A part of a data set whose images stay in their files: what is known about them, and how one is read and shown."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.files.decode import images_of_any_size, open_rgb, reason_of
from pipeline.data.files.in_use import InUse
from pipeline.data.files.listing import printable
from pipeline.data.files.paths import Paths
from pipeline.data.sampling.resized_crops import CentreView
from pipeline.errors import TrainingError

BILINEAR = Image.Resampling.BILINEAR


def read_centre(path: str | Path, view: CentreView) -> np.ndarray:
    """Decode one file, as `open_rgb` does, and show it as evaluation does.

    Returns:
        (S, S, 3) uint8, S being `view.size`.
    """
    rgb = open_rgb(path)
    top, left, bottom, right = view.boxes(np.array([[rgb.height, rgb.width]], np.int32))[0].tolist()
    return np.asarray(rgb.resize((view.size, view.size), BILINEAR, box=(left, top, right, bottom)))


@dataclass(frozen=True, eq=False)
class FileSet:
    """One part of a data set, streamed from its files, in sample-id order.

    Attributes:
        root: `data.root`.
        sample_paths: file of each image, relative to `root`.
        labels: (N,) int64.
        sizes: (N, 2) int32, height and width of each image in pixels, upright.
        size: height and width that training ends at, in pixels.
        view: how an image is shown in evaluation.
        replaced: the files to read in place of those that decoders disagree about, by sample id.
        in_use: keeps them where they are.
    """

    root: Path
    sample_paths: Paths
    labels: np.ndarray
    sizes: np.ndarray
    size: int
    view: CentreView
    replaced: Mapping[int, Path] = field(default_factory=dict)
    in_use: InUse | None = None

    def __post_init__(self) -> None:
        assert self.labels.dtype == np.int64 and len(self.sample_paths) == len(self.labels), (
            "one label and one path per image"
        )
        assert self.sizes.dtype == np.int32 and self.sizes.shape == (len(self.labels), 2), (
            f"sizes: {self.sizes.dtype} {self.sizes.shape}"
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that training ends at, in pixels."""
        return self.size, self.size

    def take(self, samples: np.ndarray) -> "FileSet":
        """The samples with these (M,) int64 ids, copied."""
        new_ids = {old: new for new, old in enumerate(samples.tolist()) if old in self.replaced}
        return FileSet(
            self.root,
            self.sample_paths.take(samples),
            self.labels[samples],
            self.sizes[samples],
            self.size,
            self.view,
            {new: self.replaced[old] for old, new in new_ids.items()},
            self.in_use,
        )

    def file(self, sample: int) -> Path:
        """The file to read for a sample."""
        return self.replaced.get(sample) or self.root / self.sample_paths[sample]

    def crop(self, sample: int, box: np.ndarray, size: int) -> np.ndarray:
        """(size, size, 3) uint8: a box (top, left, height, width) of an image, resized bilinearly with antialiasing.

        Raises:
            TrainingError: the file cannot be read.
        """
        top, left, height, width = box.tolist()
        with self._named(sample):
            cut = open_rgb(self.file(sample)).crop((left, top, left + width, top + height))
        return np.asarray(cut.resize((size, size), BILINEAR))

    def centre(self, sample: int) -> np.ndarray:
        """(S, S, 3) uint8: an image as evaluation shows it.

        Raises:
            TrainingError: the file cannot be read.
        """
        with self._named(sample):
            return read_centre(self.file(sample), self.view)

    @contextmanager
    def _named(self, sample: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            path = printable(self.file(sample))
            raise TrainingError(
                f"an image cannot be read; check the disk, or replace it: {path}: {reason_of(error)}"
            ) from error

    def listed(self, bad: Mapping[int, str]) -> str:
        """A line for each bad file: its path, and the reason that BAD gives for the sample."""
        return "".join(f"\n  {printable(self.file(sample))}: {reason}" for sample, reason in bad.items())

    def pixels(self, samples: np.ndarray, num_threads: int = 4) -> np.ndarray:
        """(M, S, S, 3) uint8: images as evaluation shows them."""
        with images_of_any_size(), ThreadPoolExecutor(num_threads) as pool:
            return np.stack(list(pool.map(self.centre, samples.tolist())))
