"""Data sets by name, cut into training, holdout and test, with the statistics that normalisation needs."""

import logging
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.builtin import load_digits, make_synthetic
from pipeline.data.datasets.cifar import load_cifar
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.folder import load_folder
from pipeline.data.datasets.splits import ImageSet, RawSplits, Samples, Splits
from pipeline.data.datasets.statistics import channel_histogram, mean_and_std
from pipeline.data.sampling.stratified import allocate, draw_stratified, philox
from pipeline.errors import UserError

__all__ = ["FileSet", "ImageSet", "Samples", "Splits", "load_splits"]

_log = logging.getLogger(__name__)


def load_splits(config: DataConfig, seed: int, *, is_main: bool = True) -> Splits:
    """Read the data set that `data.dataset` names.

    What has to be downloaded or decoded first, the main process does: the others call this after it has returned there.

    Args:
        config: the section `data`.
        seed: the run's seed, for the draw of the holdout and for `synthetic`.
        is_main: whether this process may write (download, unpack, cache).

    Raises:
        UserError: data that is missing or bad, or a `data.holdout`, `data.mean` or `data.std` that does not fit it.
    """
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) != NUM_CHANNELS:
            raise UserError(
                f"data.{key}: {len(values)} numbers for images of {NUM_CHANNELS} channels; give {NUM_CHANNELS}"
            )
    raw = _read(config, seed, is_main)
    held_out = draw_holdout(raw.train.labels, config.holdout, seed)
    train, holdout = raw.train, None
    if len(held_out):
        holdout = train.take(held_out)
        train = train.take(np.setdiff1d(np.arange(len(train)), held_out, assume_unique=True))
    mean, std = (config.mean, config.std) if config.mean and config.std else _statistics(raw, holdout)
    return Splits(train, raw.test, holdout, raw.class_names, mean, std)


def _read(config: DataConfig, seed: int, is_main: bool) -> RawSplits:
    root = Path(config.root).expanduser()  # the shell expands no ~ in `data.root=~/images`
    match config.dataset:
        case "digits":
            return load_digits(config.image_size)
        case "cifar10" | "cifar100":
            return load_cifar(root, config.dataset, is_main=is_main)
        case "folder":
            return load_folder(config, is_main=is_main)
        case "synthetic":
            return make_synthetic(config.num_samples, config.num_classes, config.image_size, seed)


def draw_holdout(labels: np.ndarray, holdout: float, seed: int) -> np.ndarray:
    """Ids of the training samples to hold out, ascending. An int is a count, a float a fraction, to the nearest whole number of images."""
    if not holdout:
        return np.empty(0, np.int64)
    class_sizes = np.bincount(labels)
    total = holdout if isinstance(holdout, int) else round(holdout * len(labels))
    most = len(labels) - np.count_nonzero(class_sizes)
    if not 0 < total <= most:
        raise UserError(
            f"data.holdout: {holdout} means {total} of {len(labels)} training images; at least 1 and at most {most} can be held out, "
            "so that every class keeps one"
        )
    without = np.count_nonzero((class_sizes > 0) & (allocate(class_sizes, total) == 0))
    if without:
        _log.warning(
            "data.holdout: %d images leave %d of %d classes without a held-out image",
            total,
            without,
            len(class_sizes),
        )
    return draw_stratified(labels, total, philox(seed, "holdout"))


def _statistics(raw: RawSplits, holdout: Samples | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the training images that are left without the holdout; of streamed ones, of a sample of all."""
    histogram = raw.train_histogram
    if histogram is None:
        assert isinstance(raw.train, ImageSet), "files come with a histogram"
        histogram = channel_histogram(raw.train.images)
    if isinstance(holdout, ImageSet):
        histogram = histogram - channel_histogram(holdout.images)
    mean, std = mean_and_std(histogram)
    if min(std) == 0:
        raise UserError(
            f"data.std: channel {std.index(0)} has the same value in every training pixel, so its deviation is 0; "
            "look at the images, or give data.mean and data.std"
        )
    return mean, std
