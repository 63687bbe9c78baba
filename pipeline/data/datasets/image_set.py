"""Holds one part of a data set, with all images in memory, and checks its arrays and labels."""

from dataclasses import dataclass

import numpy as np

from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.file_set import FileSet
from pipeline.errors import UserError


def describe_array(array: object) -> str:
    """Return dtype and shape of an array, or the type of another object.

    >>> describe_array(np.zeros((2, 3)))
    'float64 (2, 3)'
    """
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"


def check_pixels(images: object) -> None:
    """Check that an array holds images as they look: (N, H, W, 3) uint8.

    Raises:
        UserError: it does not; says what there is.
    """
    remedy = "give (N, H, W, 3) uint8, RGB, from 0 to 255"
    if not isinstance(images, np.ndarray):
        raise UserError(f"images: {describe_array(images)} is not an array of numpy; {remedy}")
    if images.ndim == 4 and images.shape[1] == NUM_CHANNELS != images.shape[3]:
        remedy += ", as images.transpose(0, 2, 3, 1)"
    elif images.ndim == 3 and images.shape[2] == NUM_CHANNELS:
        remedy += ", one image as images[None]"
    elif images.ndim == 3 or images.shape[-1:] == (1,):
        remedy += ", grey as three equal channels"
    is_rgb = images.ndim == 4 and images.shape[3] == NUM_CHANNELS and min(images.shape[1:3]) > 0
    if images.dtype != np.uint8 or not is_rgb:
        raise UserError(f"images: {describe_array(images)}; {remedy}")


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
        """Check the arrays.

        Raises:
            UserError: names the array, and what it has to be.
        """
        check_pixels(self.images)
        if not self.images.flags.c_contiguous:
            raise UserError("images: the array is not C-contiguous; give np.ascontiguousarray(images)")
        labels, count = self.labels, len(self.images)
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.shape != (count,):
            raise UserError(
                f"labels: {describe_array(labels)} for {count} images; give ({count},) int64 class indices, "
                "as np.asarray(labels, np.int64)"
            )
        if self.sample_paths is not None and len(self.sample_paths) != count:
            raise UserError(
                f"sample_paths: {len(self.sample_paths)} for {count} images; give one for each, or None"
            )

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


def check_labels(name: str, part: Samples, num_classes: int) -> None:
    """Check that all labels are in [0, num_classes).

    A GPU does not detect a label outside of this range: it reads other memory as logits, or the loss is NaN.

    Args:
        name: of the part, for the message.
        part: of the data set.
        num_classes: outputs of the network.

    Raises:
        UserError: a label is outside.
    """
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"{name} labels: {len(wrong)} are not in 0..{num_classes - 1}, "
            f"the first is {part.labels[wrong[0]]} of image {wrong[0]}; "
            "give one class name for each label, or correct the labels"
        )
