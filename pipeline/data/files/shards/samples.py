"""Describes the samples of one shard."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class CannotWriteImages(Exception):
    """The file that the images of a shard are copied to cannot be written; `__cause__` is the reason."""


class ShardKeys(NamedTuple):
    """`data.image_key` and `data.label_key`."""

    image: str | None
    label: str | None


@dataclass(eq=False)
class ShardSamples:
    """The samples of one shard, in its order.

    Attributes:
        names: of the images, in the shard.
        labels: the text of each label: a number or a name.
        offset, num_bytes: (N,) int64, the place of each image in the file that is read.
        class_names: of the labels 0, 1, …, where the shard gives them.
        without_label: names of samples that are left out, because they have no label.
        warnings: what a person should know, a sentence each, without the name of the shard.
    """

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    offset: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_bytes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    class_names: tuple[str, ...] = ()
    without_label: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
