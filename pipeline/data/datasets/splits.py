"""Describes a data set after reading: uint8 images with labels, or files of images, split into parts."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.files.paths import Paths
from pipeline.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One part of a data set, with all images in memory, in the order of the sample ids.

    Attributes:
        images: (N, H, W, 3) uint8, RGB, C-contiguous. May be a private (copy-on-write) memory map of a cache
            file.
        labels: (N,) int64.
        sample_paths: file of each image, relative to `data.root`; None if the images have no files.
    """

    images: np.ndarray
    labels: np.ndarray
    sample_paths: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images, labels, shape = self.images, self.labels, self.images.shape
        is_rgb = len(shape) == 4 and shape[3] == NUM_CHANNELS
        assert images.dtype == np.uint8 and is_rgb, f"images: {images.dtype} {shape}"
        assert images.flags.c_contiguous, "images are not C-contiguous"
        assert labels.dtype == np.int64 and labels.shape == shape[:1], (
            f"labels: {labels.dtype} {labels.shape}"
        )
        assert self.sample_paths is None or len(self.sample_paths) == len(self), "one path per image"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        height, width = self.images.shape[1:3]
        return height, width

    def pixels(self, samples: np.ndarray) -> np.ndarray:
        """Copy the images with these ids: (M, H, W, 3) uint8."""
        return self.images[samples]

    def take(self, samples: np.ndarray) -> "ImageSet":
        """Copy the samples with these (M,) int64 ids."""
        paths = None if self.sample_paths is None else tuple(self.sample_paths[i] for i in samples)
        return ImageSet(self.images[samples], self.labels[samples], paths)


Samples = ImageSet | FileSet


@dataclass(frozen=True, eq=False)
class RawSplits:
    """A data set as its reader returns it, before the holdout is drawn.

    Attributes:
        train, test: the two parts; not empty, and with images of one size.
        class_names: in label order.
        train_histogram: (3, 256) int64, `channel_histogram(train.images)`, or None if the reader does not
            have it. For streamed files, that of a sample of them.
    """

    train: Samples
    test: Samples
    class_names: tuple[str, ...]
    train_histogram: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.train.image_size == self.test.image_size, "train and test images differ in size"
        for part in (self.train, self.test):
            assert len(part), "a part is empty"
            assert part.labels.min() >= 0 and part.labels.max() < len(self.class_names), (
                "a label is out of range"
            )


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, ready for the loaders.

    Attributes:
        train: training images, without the held-out ones.
        test: test images.
        holdout: training images held out to choose among checkpoints; None without `data.holdout`.
        class_names: in label order.
        mean, std: per channel, as fractions of 1 (pixel / 255): over the pixels of `train` (for streamed
            files, of a sample), or as in the config.
    """

    train: Samples
    test: Samples
    holdout: Samples | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check_labels(self) -> None:
        """Check that all labels are in [0, num_classes).

        A GPU does not detect a label outside of this range: it reads other memory as logits, or the loss is
        NaN.

        Raises:
            UserError: a label is outside.
        """
        for name, part in (("training", self.train), ("held-out", self.holdout), ("test", self.test)):
            if part is None or not len(part.labels):
                continue
            wrong = np.flatnonzero((part.labels < 0) | (part.labels >= self.num_classes))
            if len(wrong):
                raise UserError(
                    f"data.root: {len(wrong)} {name} labels are not in 0..{self.num_classes - 1}, "
                    f"the first is {part.labels[wrong[0]]} of image {wrong[0]}; "
                    "give one class name for each label, or correct the labels"
                )

    def fingerprint(self) -> dict[str, int | str]:
        """Return the number of images in each part, and 16 hex digits that identify the data.

        The digits are a hash of the classes, and of the labels and file names in order.
        """
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
        """Return the number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of training images at the end of the run, in pixels."""
        return self.train.image_size

    @property
    def num_channels(self) -> int:
        """Return the number of channels of the images."""
        return NUM_CHANNELS
