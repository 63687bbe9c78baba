"""How many images a data set has, without reading, downloading or writing any of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import Config, DataConfig
from pipeline.data.datasets.cifar import CIFAR_FILES, missing_files
from pipeline.data.datasets.load import draw_holdout
from pipeline.data.files.listing import list_files, read_list_classes
from pipeline.errors import UserError

_DIGITS, _CIFAR = (1437, 360), (50_000, 10_000)  # images for training and for testing


@dataclass(frozen=True)
class Counts:
    """Attributes:
    train, held_out, test: images.
    num_classes: of the data set.
    note: what there is to know about the files.
    """

    train: int
    held_out: int
    test: int
    num_classes: int
    note: str


def count_images(config: DataConfig, seed: int) -> Counts:
    """Count the images of the data set that `data.dataset` names; of a folder, those that are listed: none is opened.

    Raises:
        UserError: folders that are not there or not as described, or a `data.holdout` that does not fit.
    """
    root, note = Path(config.root).expanduser(), "needs no files"
    if config.dataset == "folder":
        listing = list_files(root, config)
        labels, test, num_classes = (
            listing.parts["train"].labels,
            len(listing.parts["test"]),
            len(listing.classes),
        )
        note = f"as listed in {root}, no image opened"
    else:
        (train, test), num_classes = {
            "digits": (_DIGITS, 10),
            "cifar10": (_CIFAR, 10),
            "cifar100": (_CIFAR, 100),
            "synthetic": ((config.num_samples, max(1, config.num_samples // 5)), config.num_classes),
        }[config.dataset]
        labels = np.arange(train) % num_classes
    if config.dataset in CIFAR_FILES:
        files, missing = CIFAR_FILES[config.dataset], missing_files(root, config.dataset)
        there = (root / files.archive).exists()
        note = f"in {root}"
        if missing:
            note = f"not in {root} yet: a run {'unpacks ' + files.archive if there else 'downloads it first'}"
    held_out = len(draw_holdout(labels, config.holdout, seed))
    return Counts(len(labels) - held_out, held_out, test, num_classes, note)


def num_classes_of(config: Config) -> int:
    """Classes of the config's data set. Of files, names alone are read.

    Raises:
        UserError: the folder is not there, or a list file is not as it should be.
    """
    data = config.data
    if data.dataset == "synthetic":
        return data.num_classes
    if data.dataset != "folder":
        return _NUM_CLASSES[data.dataset]
    if data.train_list is not None:
        return len(read_list_classes(data))
    folder = Path(data.root).expanduser() / "train"
    if not folder.is_dir():
        raise UserError(
            f"data.root: no folder {folder} to count the classes in; set data.root, or data.dataset=synthetic data.num_classes=N"
        )
    return sum(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


_NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
