"""Data sets and loaders: everything between files and device tensors that are ready for the model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config import Config, check_batches, to_bytes
from pipeline.data.base import Transform
from pipeline.data.batch import Batch, Loader
from pipeline.data.dali import DaliLoader
from pipeline.data.datasets import ImageSet, Splits, load_splits
from pipeline.data.fused import FusedLoader
from pipeline.data.reference import ReferenceLoader
from pipeline.data.sampling import EvalSampler, Sampler, Shard, TrainSampler
from pipeline.data.synthetic import SyntheticLoader
from pipeline.errors import UserError

__all__ = ["Batch", "ImageSet", "Loader", "Loaders", "Shard", "Splits", "Transform", "build_loaders", "load_splits"]


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run.

    Attributes:
        train: shuffled and augmented, position set by `seek`.
        test: every test image once per iteration.
        holdout: likewise for the held-out training images; None without `data.holdout`.
    """

    train: Loader
    test: Loader
    holdout: Loader | None


def build_loaders(config: Config, splits: Splits, device: torch.device, shard: Shard | None = None) -> Loaders:
    """Build the loaders that `data.loader` names, for this process.

    Args:
        config: the run's config.
        splits: the data set, from `load_splits`.
        device: where batches are delivered.
        shard: this process among the processes of the run; default: the only one.

    Raises:
        UserError: a batch size that the processes do not divide, or that is more than the training set.
    """
    data, augment = config.data, config.augment
    shard = shard or Shard()
    check_batches(config, shard.world_size)
    dtype = torch.float32 if config.precision.mode == "fp32" else torch.float16  # DALI has no bfloat16: autocast casts
    plain = Transform(splits.mean, splits.std, dtype, config.runtime.channels_last)
    augmented = Transform(splits.mean, splits.std, dtype, config.runtime.channels_last, augment.crop_padding, augment.cutout)

    def evaluation(images: ImageSet) -> Loader:
        sampler = EvalSampler(len(images.labels), _eval_batch_size(data.eval_batch_size, len(images.labels), shard), shard)
        return backend(images, sampler, plain)

    backend = _backend(config, splits, device, shard)
    train_sampler = TrainSampler(len(splits.train), data.batch_size, shard, config.seed, splits.image_size, augment)
    return Loaders(
        train=backend(splits.train, train_sampler, augmented),
        test=evaluation(splits.test),
        holdout=evaluation(splits.holdout) if splits.holdout is not None else None,
    )


def _eval_batch_size(batch_size: int, num_samples: int, shard: Shard) -> int:
    """`data.eval_batch_size`, or less where the set is smaller than that."""
    return min(batch_size, -(-num_samples // shard.world_size) * shard.world_size)


def _backend(config: Config, splits: Splits, device: torch.device, shard: Shard) -> Callable[[ImageSet, Sampler, Transform], Loader]:
    data, augment = config.data, config.augment

    def dali(image_set: ImageSet, sampler: Sampler, transform: Transform) -> Loader:
        images = _as_tensor(image_set.images)
        if images.nbytes <= to_bytes(data.resident_limit):
            images = images.to(device)
        labels = _as_tensor(image_set.labels).to(device)
        return DaliLoader(images, labels, sampler, transform, device, data.num_threads, data.prefetch)

    def reference(image_set: ImageSet, sampler: Sampler, transform: Transform) -> Loader:
        workers = data.num_threads if data.num_threads > 1 else 0
        images, labels = _as_tensor(image_set.images), _as_tensor(image_set.labels)
        return ReferenceLoader(images, labels, sampler, transform, device, workers, data.prefetch)

    def synthetic(image_set: ImageSet, sampler: Sampler, transform: Transform) -> Loader:
        height, width, channels = image_set.images.shape[1:]
        return SyntheticLoader((height, width, channels), splits.num_classes, sampler, transform, device, config.seed)

    def fused(image_set: ImageSet, sampler: Sampler, transform: Transform) -> Loader:
        if device.type != "cuda":
            raise UserError("data.loader: fused runs on a GPU only; use data.loader=dali, which has a CPU backend")
        images, labels = _as_tensor(image_set.images), _as_tensor(image_set.labels)
        if images.nbytes > to_bytes(data.resident_limit):
            raise UserError(
                f"data.loader: fused keeps all images on the GPU, but {images.nbytes} bytes are more than data.resident_limit="
                f"{data.resident_limit}; raise that, or use data.loader=dali"
            )
        drawn = augment if isinstance(sampler, TrainSampler) else None
        return FusedLoader(images.to(device), labels.to(device), sampler, transform, config.seed, drawn, shard)

    return {"dali": dali, "fused": fused, "reference": reference, "synthetic": synthetic}[data.loader]


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory (copied only where it is read-only, which torch has no word for)."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
