"""Describes one part of a data set whose images stay in their files, and reads them: `FileSet`."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.files.decode import images_of_any_size, open_rgb
from pipeline.data.files.file_part import FilePart, ImageFile
from pipeline.data.files.listing import Files
from pipeline.data.files.many import reason_of
from pipeline.data.files.paths import Paths, printable
from pipeline.data.sampling.resized_crops import CentreView
from pipeline.errors import TrainingError

BILINEAR = Image.Resampling.BILINEAR


def read_centre(file: ImageFile, view: CentreView) -> np.ndarray:
    """Decode one image with `open_rgb`, resize it and crop its centre, as in evaluation.

    Returns:
        (S, S, 3) uint8, where S is `view.size`.
    """
    return _show_centre(open_rgb(file), view)


def _show_centre(rgb: Image.Image, view: CentreView) -> np.ndarray:
    top, left, bottom, right = view.boxes(np.array([[rgb.height, rgb.width]], np.int32))[0].tolist()
    return np.asarray(rgb.resize((view.size, view.size), BILINEAR, box=(left, top, right, bottom)))


@dataclass(frozen=True, eq=False)
class FileSet:
    """One part of a data set, streamed from its files, in the order of the sample ids.

    Attributes:
        root: `data.root`.
        files: the images, with their labels and places.
        sizes: (N, 2) int32, height and width of each image in pixels, upright.
        size: height and width of training images at the end of the run, in pixels.
        view: resize and crop of evaluation.
        replaced: by sample id, the copies to read in place of files that decoders show in different ways.
        all_decoded: True if every file could be decoded before the run (`data.on_bad_image=skip`).
    """

    root: Path
    files: Files
    sizes: np.ndarray
    size: int
    view: CentreView
    replaced: Mapping[int, Path] = field(default_factory=dict)
    all_decoded: bool = False

    def __post_init__(self) -> None:
        count = len(self.files)
        assert self.labels.dtype == np.int64 and len(self.sample_paths) == count, (
            "one label, one path per image"
        )
        assert self.sizes.dtype == np.int32 and self.sizes.shape == (count, 2), (
            "one height and width per image"
        )

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> np.ndarray:
        """Return the labels, (N,) int64."""
        return self.files.labels

    @property
    def sample_paths(self) -> Paths:
        """Return the file of each image, relative to `root`; of an image in a shard, `SHARD:NAME`."""
        return self.files.paths

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of training images at the end of the run, in pixels."""
        return self.size, self.size

    def take(self, samples: np.ndarray) -> "FileSet":
        """Copy the samples with these (M,) int64 ids."""
        new_ids = {old: new for new, old in enumerate(samples.tolist()) if old in self.replaced}
        return FileSet(
            self.root,
            self.files.take(samples),
            self.sizes[samples],
            self.size,
            self.view,
            {new: self.replaced[old] for old, new in new_ids.items()},
            self.all_decoded,
        )

    def file(self, sample: int) -> Path | FilePart:
        """Return the file, or the part of a file, to read for a sample."""
        return self.replaced.get(sample) or self.files.file(self.root, sample)

    def decode(self, sample: int) -> Image.Image:
        """Decode the file of a sample to RGB, and compare its size with that of the scan.

        Raises:
            ValueError: the image has another size.
            Exception: as for `open_rgb`.
        """
        image, (height, width) = open_rgb(self.file(sample)), self.sizes[sample].tolist()
        if image.size != (width, height):
            raise ValueError(f"{image.width}x{image.height} pixels, and no longer {width}x{height}")
        return image

    def read_crop(self, sample: int, box: np.ndarray, size: int) -> np.ndarray:
        """Read a box (top, left, height, width) of an image and resize it, bilinearly with antialiasing.

        Returns:
            (size, size, 3) uint8.

        Raises:
            TrainingError: the file cannot be read, or holds an image of another size than in the scan.
        """
        top, left, height, width = box.tolist()
        with self._file_in_error(sample):
            crop = self.decode(sample).crop((left, top, left + width, top + height))
        return np.asarray(crop.resize((size, size), BILINEAR))

    def read_centre(self, sample: int) -> np.ndarray:
        """Read an image as in evaluation: (S, S, 3) uint8.

        Raises:
            TrainingError: as for `read_crop`.
        """
        with self._file_in_error(sample):
            return _show_centre(self.decode(sample), self.view)

    @contextmanager
    def _file_in_error(self, sample: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self.error_of({sample: reason_of(error)}) from error

    def error_of(self, bad: Mapping[int, str]) -> TrainingError:
        """Return the error of a run that cannot read some samples, each with the reason."""
        if self.all_decoded:
            cause = "images have changed or become unreadable since the run began"
            remedy = "check the disk, or replace them, and resume"
        else:
            cause = "images are damaged, or have changed since the run began"
            remedy = (
                "check the disk, replace them and resume; or start again with data.on_bad_image=skip, "
                "which leaves damaged images out"
            )
        return TrainingError(f"{cause}; {remedy}:{self.list_bad(bad)}")

    def list_bad(self, bad: Mapping[int, str]) -> str:
        """Return a line for each bad file: its path, and the reason that BAD gives for the sample."""
        return "".join(f"\n  {printable(str(self.file(sample)))}: {reason}" for sample, reason in bad.items())

    def pixels(self, samples: np.ndarray, num_threads: int = 4) -> np.ndarray:
        """Read several images as in evaluation: (M, S, S, 3) uint8."""
        with images_of_any_size(), ThreadPoolExecutor(num_threads) as pool:
            return np.stack(list(pool.map(self.read_centre, samples.tolist())))
