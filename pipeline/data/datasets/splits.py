"""What a data set is once it has been read: uint8 images with labels, or files of images, split into parts."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.files.paths import Paths


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One part of a data set, in sample-id order.

    Attributes:
        images: (N, H, W, 3) uint8, RGB, C-contiguous. May be a private (copy-on-write) memory map of a cache file.
        labels: (N,) int64.
        sample_paths: file of each image, relative to `data.root`; None where the images have no files.
    """

    images: np.ndarray
    labels: np.ndarray
    sample_paths: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        shape = self.images.shape
        assert self.images.dtype == np.uint8 and len(shape) == 4 and shape[3] == NUM_CHANNELS, (
            f"images: {self.images.dtype} {shape}"
        )
        assert self.images.flags.c_contiguous, "images are not C-contiguous"
        assert self.labels.dtype == np.int64 and self.labels.shape == shape[:1], (
            f"labels: {self.labels.dtype} {self.labels.shape}"
        )
        assert self.sample_paths is None or len(self.sample_paths) == len(self), "one path per image"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.images.shape[1:3]
        return height, width

    def pixels(self, samples: np.ndarray) -> np.ndarray:
        """(M, H, W, 3) uint8: the images with these ids, copied."""
        return self.images[samples]

    def take(self, samples: np.ndarray) -> "ImageSet":
        """The samples with these (M,) int64 ids, copied."""
        paths = None if self.sample_paths is None else tuple(self.sample_paths[i] for i in samples)
        return ImageSet(self.images[samples], self.labels[samples], paths)


Samples = ImageSet | FileSet


@dataclass(frozen=True, eq=False)
class RawSplits:
    """A data set as its reader delivers it.

    Attributes:
        train, test: the two parts; not empty, and with images of one size.
        class_names: in label order.
        train_histogram: (3, 256) int64 as `channel_histogram(train.images)`, where the reader has it at hand; of streamed files, from
            a sample of them.
    """

    train: Samples
    test: Samples
    class_names: tuple[str, ...]
    train_histogram: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.train.image_size == self.test.image_size, "train and test images differ in size"
        for part in (self.train, self.test):
            assert len(part) and part.labels.min() >= 0 and part.labels.max() < len(self.class_names), (
                "empty, or a label out of range"
            )


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, ready for the loaders.

    Attributes:
        train: training images, without those held out.
        test: test images.
        holdout: training images held out for choosing among checkpoints; None without `data.holdout`.
        class_names: in label order.
        mean, std: per channel, fractions of 1 (pixel / 255), over the pixels of `train` (streamed: of a sample), or as the config says.
    """

    train: Samples
    test: Samples
    holdout: Samples | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fingerprint(self) -> dict[str, int | str]:
        """Images in each part, and 16 hex digits over the classes, and the labels and file names in order."""
        parts = {"train": self.train, "held_out": self.holdout, "test": self.test}
        digest = hashlib.sha256("\0".join(self.class_names).encode(errors="surrogateescape"))
        for part in parts.values():
            if part is not None:
                digest.update(part.labels.tobytes())
                names = part.sample_paths
                digest.update(names.block if isinstance(names, Paths) else os.fsencode("".join(names or ())))
        return {
            **{name: 0 if part is None else len(part) for name, part in parts.items()},
            "digest": digest.hexdigest()[:16],
        }

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of training images in pixels; of those at the end, where they grow."""
        return self.train.image_size

    @property
    def num_channels(self) -> int:
        return NUM_CHANNELS
