"""Describes a data set after reading: uint8 images with labels, or files of images, split into parts."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.argument_types import check_type
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.image_set import ImageSet, Samples, check_labels, describe_array
from pipeline.data.datasets.statistics import channel_histogram, mean_and_std
from pipeline.data.files.paths import Paths
from pipeline.errors import UserError


def statistics_of(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation from a (3, 256) int64 histogram: see `mean_and_std`.

    Raises:
        UserError: a channel has the same value in every pixel, so that it cannot be normalised.
    """
    mean, std = mean_and_std(histogram)
    if min(std) == 0:
        raise UserError(
            f"data.std: channel {std.index(0)} has the same value in every training pixel, so its standard "
            "deviation is 0; look at the images, or give data.mean and data.std"
        )
    return mean, std


def _check_different(class_names: Sequence[str]) -> None:
    for label, name in enumerate(class_names):
        if name in class_names[:label]:
            raise UserError(
                f"class_names: {name!r} is the name of labels {class_names.index(name)} and {label}; give "
                "each class a name of its own"
            )


def _by(size: tuple[int, int]) -> str:
    """Return "height x width"."""
    return f"{size[0]} x {size[1]}"


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

    @classmethod
    def from_arrays(
        cls,
        train: ImageSet,
        test: ImageSet,
        *,
        holdout: ImageSet | None = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Splits":
        """Make a data set of images in memory.

        Args:
            train, test: images and labels; all images have one size.
            holdout: training images held out to choose among checkpoints.
            class_names: in label order; default: the numbers of the labels.
            mean, std: per channel, fractions of 1; default: computed from `train`, exactly.

        Raises:
            UserError: names the argument, and what it has to be.

        >>> images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
        >>> some = ImageSet(images, np.array([0, 1, 0, 1]))
        >>> Splits.from_arrays(some, some).class_names
        ('0', '1')
        """
        parts = {"train": train, "test": test, **({} if holdout is None else {"holdout": holdout})}
        for name, part in parts.items():
            if not isinstance(part, ImageSet):
                raise UserError(
                    f"{name}: {describe_array(part)} is not an ImageSet; give ImageSet(images, labels)"
                )
            if not len(part):
                raise UserError(f"{name}: there are no images")
            if part.image_size != train.image_size:
                raise UserError(
                    f"{name}: images of {_by(part.image_size)} pixels, and {_by(train.image_size)} in train; "
                    "resize them to one size"
                )
        if (mean is None) != (std is None):
            raise UserError("mean and std: give both or neither")
        if class_names is None:
            class_names = tuple(map(str, range(max(int(part.labels.max()) for part in parts.values()) + 1)))
        else:
            check_type("class_names", class_names, Sequence[str])
            _check_different(class_names)
        if mean is None or std is None:
            mean, std = statistics_of(channel_histogram(train.images))
        splits = cls(train, test, holdout, tuple(class_names), tuple(mean), tuple(std))
        splits.check_labels()
        return splits

    def __post_init__(self) -> None:
        """Check the parts, classes and statistics.

        Raises:
            UserError: names the field, and what it has to be.
        """
        check_type("class_names", self.class_names, Sequence[str])
        if not self.class_names:
            raise UserError("class_names: there are none; give one for each label")
        for name, part in (("train", self.train), ("test", self.test), ("holdout", self.holdout)):
            if not isinstance(part, Samples) and (part is not None or name != "holdout"):
                raise UserError(f"{name}: {describe_array(part)} is not a set of images; give an ImageSet")
        if not len(self.test):
            raise UserError("test: there are no images; give some to evaluate on")
        for name, values, lowest in (("mean", self.mean, 0.0), ("std", self.std, np.finfo(np.float32).tiny)):
            numbers = np.asarray(values)
            fits = numbers.shape == (NUM_CHANNELS,) and numbers.dtype.kind in "iuf"
            if not fits or not (lowest <= numbers).all() or not (numbers <= 1).all():
                raise UserError(
                    f"{name}: {values!r}; give {NUM_CHANNELS} fractions of 1 (pixel / 255), one a channel"
                    + ", above 0" * (name == "std")
                )

    def check_labels(self) -> None:
        """Check the labels of all parts: see `check_labels`.

        Raises:
            UserError: a label is outside.
        """
        for name, part in (("training", self.train), ("held-out", self.holdout), ("test", self.test)):
            if part is not None:
                check_labels(name, part, self.num_classes)

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
