"""Loads a data set by name: training, holdout and test part, with the statistics for normalisation."""

import logging
from collections.abc import Sequence

import numpy as np

from pipeline.config import CifarData, Config, DataConfig, DigitsData, FileData, SyntheticData, path_of
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.builtin import load_digits, make_synthetic
from pipeline.data.datasets.cifar import load_cifar, load_cifar_test
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.folder import load_files, load_test_files
from pipeline.data.datasets.image_set import ImageSet, Samples
from pipeline.data.datasets.splits import RawSplits, Splits, statistics_of
from pipeline.data.datasets.statistics import channel_histogram
from pipeline.data.sampling.philox import named_generator
from pipeline.data.sampling.stratified import allocate, draw_stratified
from pipeline.errors import UserError

_log = logging.getLogger(__name__)


def load_splits(config: DataConfig, seed: int, *, is_main: bool = True) -> Splits:
    """Read the data set that `data.dataset` names.

    The main process downloads or decodes if necessary. The other processes call this function after it has
    returned on the main process.

    Args:
        config: the section `data`.
        seed: the run's seed, for the draw of the holdout and for `synthetic`.
        is_main: True if this process may write (download, unpack, cache).

    Raises:
        UserError: data that is missing or bad, or a `data.holdout`, `data.mean` or `data.std` that does not
            fit.
    """
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) != NUM_CHANNELS:
            raise UserError(
                f"data.{key}: {len(values)} numbers for images of {NUM_CHANNELS} channels; "
                f"give {NUM_CHANNELS}"
            )
    raw = _read(config, seed, is_main)
    held_out = draw_holdout(raw.train.labels, config.holdout, seed)
    train, holdout = raw.train, None
    if len(held_out):
        holdout = train.take(held_out)
        train = train.take(np.setdiff1d(np.arange(len(train)), held_out, assume_unique=True))
    mean, std = (config.mean, config.std) if config.mean and config.std else _statistics(raw, holdout)
    return Splits(train, raw.test, holdout, raw.class_names, mean, std)


def load_test(
    config: DataConfig, seed: int, class_names: tuple[str, ...], *, streamed: bool = False
) -> Samples:
    """Read the test images for a network that has been trained, and no others where they are in files.

    Args:
        config: the section `data`.
        seed: the run's seed.
        class_names: of the network, in label order.
        streamed: True if the network was trained on streamed files.

    Raises:
        UserError: data that is missing or bad, or of other classes than the network's.
    """
    match config:
        case FileData():
            return load_test_files(config, class_names, streamed=streamed)
        case CifarData():
            test, found = load_cifar_test(path_of("data.root", config.root), config.dataset)
        case _:
            raw = _read(config, seed, is_main=True)
            test, found = raw.test, raw.class_names
    check_class_names(found, class_names)
    return test


def check_class_names(found: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that a data set has the classes of a network.

    Raises:
        UserError: it has others.
    """
    if tuple(found) != tuple(wanted):
        raise UserError(
            f"data.root: the classes are {_first(found)}, but the network was trained on {_first(wanted)}; "
            "give the data set of the run"
        )


def check_image_size(config: Config, splits: Splits) -> None:
    """Check that images in memory have the size that a config describes: its network is made for that size.

    Raises:
        UserError: they have another one, which comes of arrays of the caller.
    """
    size, (height, width) = config.image_size, splits.image_size
    if isinstance(splits.train, FileSet) or (height, width) == (size, size):
        return
    remedy = f"give the config data.image_size={height}" if height == width else "make them square"
    if height == width and isinstance(config.data, CifarData):
        remedy += " and data.dataset=synthetic, which has that key"
    raise UserError(
        f"splits: images of {height} x {width} pixels, and the config is for {size} x {size}; {remedy}"
    )


def _first(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _read(config: DataConfig, seed: int, is_main: bool) -> RawSplits:
    match config:
        case DigitsData():
            return load_digits(config.image_size)
        case CifarData():
            return load_cifar(path_of("data.root", config.root), config.dataset, is_main=is_main)
        case FileData():
            return load_files(config, is_main=is_main)
        case SyntheticData():
            return make_synthetic(config.num_samples, config.num_classes, config.image_size, seed)


def draw_holdout(labels: np.ndarray, holdout: float, seed: int) -> np.ndarray:
    """Draw the training samples to hold out, with each class in proportion to its size.

    Args:
        labels: (N,) int64, of the training set.
        holdout: `data.holdout`: an int is a number of images; a float is a fraction, rounded to whole images.
        seed: the run's seed.

    Returns:
        Sample ids in ascending order.

    Raises:
        UserError: so many images cannot be held out.
    """
    if not holdout:
        return np.empty(0, np.int64)
    class_sizes = np.bincount(labels)
    total = holdout if isinstance(holdout, int) else round(holdout * len(labels))
    most = len(labels) - np.count_nonzero(class_sizes)
    if not 0 < total <= most:
        raise UserError(
            f"data.holdout: {holdout} means {total} of {len(labels)} training images; "
            f"at least 1 and at most {most} can be held out, so that every class keeps one"
        )
    without = np.count_nonzero((class_sizes > 0) & (allocate(class_sizes, total) == 0))
    if without:
        _log.warning(
            "data.holdout: %d images leave %d of %d classes without a held-out image",
            total,
            without,
            len(class_sizes),
        )
    return draw_stratified(labels, total, named_generator(seed, "holdout"))


def _statistics(raw: RawSplits, holdout: Samples | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of the training images without the holdout.

    For streamed images, they are those of a sample of all training images.
    """
    histogram = raw.train_histogram
    if histogram is None:
        assert isinstance(raw.train, ImageSet), "files come with a histogram"
        histogram = channel_histogram(raw.train.images)
    if isinstance(holdout, ImageSet):
        histogram = histogram - channel_histogram(holdout.images)
    return statistics_of(histogram)
