"""Counts the images of a data set, without reading, downloading or writing any of them."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import (
    CifarData,
    Config,
    DataConfig,
    FileData,
    FolderData,
    ShardData,
    SyntheticData,
    path_of,
)
from pipeline.data.datasets.cifar import CIFAR_FILES, missing_files
from pipeline.data.datasets.load import draw_holdout
from pipeline.data.files.class_folders import count_class_folders
from pipeline.data.files.list_files import list_files
from pipeline.data.files.path_lists import read_list_classes
from pipeline.data.files.shards.listing import count_shard_classes

_DIGITS, _CIFAR = (1437, 360), (50_000, 10_000)  # images for training and for testing
_NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Counts:
    """The size of a data set.

    Attributes:
        train, held_out, test: numbers of images.
        num_classes: number of classes.
        note: a remark about the files.
    """

    train: int
    held_out: int
    test: int
    num_classes: int
    note: str


def count_images(config: DataConfig, seed: int) -> Counts:
    """Count the images of the data set that `data.dataset` names. Files are listed, and no image is opened.

    Raises:
        UserError: folders that do not exist or are not as described, or a `data.holdout` that does not fit.
    """
    root, note = path_of("data.root", config.root), "needs no files"
    if isinstance(config, FileData):
        listing = list_files(config, writes=False)
        labels, test = listing.parts["train"].labels, len(listing.parts["test"])
        num_classes, note = len(listing.classes), f"as listed in {listing.root}, no image opened"
    else:
        if isinstance(config, SyntheticData):
            train, test, num_classes = config.num_samples, max(1, config.num_samples // 5), config.num_classes
        else:
            train, test = _CIFAR if isinstance(config, CifarData) else _DIGITS
            num_classes = _NUM_CLASSES[config.dataset]
        labels = np.arange(train) % num_classes
    if isinstance(config, CifarData):
        files, missing = CIFAR_FILES[config.dataset], missing_files(root, config.dataset)
        note = f"in {root}"
        if missing:
            has_archive = (root / files.archive).exists()
            action = f"unpacks {files.archive}" if has_archive else "downloads it first"
            note = f"not in {root} yet: a run {action}"
    held_out = len(draw_holdout(labels, config.holdout, seed))
    return Counts(len(labels) - held_out, held_out, test, num_classes, note)


def num_classes_of(config: Config) -> int:
    """Count the classes of the config's data set. Only the names of files are read, and the index of shards.

    Raises:
        UserError: the folder does not exist, or a list file or a shard is not as described.
    """
    data = config.data
    if isinstance(data, SyntheticData):
        return data.num_classes
    if isinstance(data, ShardData):
        return count_shard_classes(data)
    if not isinstance(data, FolderData):
        return _NUM_CLASSES[data.dataset]
    if data.train_list is not None:
        return len(read_list_classes(data))
    return count_class_folders(path_of("data.root", data.root), data)
