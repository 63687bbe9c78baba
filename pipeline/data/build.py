"""Builds the loaders of a run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config import Config, check_batches, to_bytes
from pipeline.config.rules import DRAWN_FROM_FILES, SHOWN_FROM_FILES, changed_keys
from pipeline.data.batch import Loader
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.splits import Samples, Splits
from pipeline.data.loaders.base import Transform
from pipeline.data.loaders.dali_arrays import DaliLoader
from pipeline.data.loaders.dali_files import Decoder, Photometric, StreamLoader
from pipeline.data.loaders.fused import FusedLoader
from pipeline.data.loaders.synthetic import SyntheticLoader
from pipeline.data.sampling.batch_plan import EvalSampler, Sampler, Shard, StreamSampler, TrainSampler
from pipeline.data.sampling.progressive import training_resolutions
from pipeline.errors import UserError

_log = logging.getLogger(__name__)


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


def build_loaders(
    config: Config, splits: Splits, device: torch.device, shard: Shard | None = None
) -> Loaders:
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
    _check_labels(splits)
    dtype = (
        torch.float32 if config.precision.mode == "fp32" else torch.float16
    )  # DALI has no bfloat16: autocast casts
    plain = Transform(splits.mean, splits.std, dtype, config.runtime.channels_last)
    augmented = Transform(
        splits.mean, splits.std, dtype, config.runtime.channels_last, augment.crop_padding, augment.cutout
    )

    def evaluation(samples: Samples) -> Loader:
        sampler = EvalSampler(
            len(samples), _eval_batch_size(data.eval_batch_size, len(samples), shard), shard
        )
        return backend(samples, sampler, plain)

    if (
        isinstance(splits.train, FileSet)
        and (augment.color_jitter or augment.randaugment)
        and shard.rank == 0
    ):
        _log.warning(
            "augment.color_jitter and augment.randaugment are drawn by DALI: a resumed run, or one on another number of processes, sees "
            "other colours; order, crops and flips stay the same"
        )
    backend = _backend(config, splits, device, shard)
    return Loaders(
        train=backend(splits.train, _train_sampler(config, splits.train, shard), augmented),
        test=evaluation(splits.test),
        holdout=evaluation(splits.holdout) if splits.holdout is not None else None,
    )


def _check_labels(splits: Splits) -> None:
    """A GPU does not notice a label beyond the classes: the loss is NaN, or what lies beside the logits."""
    for name, part in (("training", splits.train), ("held-out", splits.holdout), ("test", splits.test)):
        if part is None or not len(part.labels):
            continue
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= splits.num_classes))
        if len(wrong):
            raise UserError(
                f"data.root: {len(wrong)} {name} labels are not in 0..{splits.num_classes - 1}, the first is {part.labels[wrong[0]]} of "
                f"image {wrong[0]}; give one class name for each label, or mend the labels"
            )


def _eval_batch_size(batch_size: int, num_samples: int, shard: Shard) -> int:
    """`data.eval_batch_size`, or less where the set is smaller than that."""
    return min(batch_size, -(-num_samples // shard.world_size) * shard.world_size)


def _train_sampler(config: Config, train: Samples, shard: Shard) -> TrainSampler:
    augment, batch_size = config.augment, config.data.batch_size
    if isinstance(train, FileSet):
        resolutions = training_resolutions(config, max(len(train) // batch_size, 1))
        return StreamSampler(train.sizes, batch_size, shard, config.seed, augment, resolutions)
    # a synthetic data set may stand in for a recipe's folder, and have keys of how files are shown
    for key, _ in changed_keys(
        config, DRAWN_FROM_FILES + (SHOWN_FROM_FILES if config.data.dataset == "folder" else ())
    ):
        raise UserError(
            f"{key}: is for streamed folders, but these images are kept decoded; leave it out (see data.cache_below)"
        )
    return TrainSampler(len(train), batch_size, shard, config.seed, train.image_size, augment)


Backend = Callable[[Samples, Sampler, Transform], Loader]


def _backend(config: Config, splits: Splits, device: torch.device, shard: Shard) -> Backend:
    data, augment = config.data, config.augment
    workers = data.num_threads if data.num_threads > 1 else 0
    if data.loader != "dali" and (augment.color_jitter or augment.randaugment):
        raise UserError(
            f"augment.color_jitter and augment.randaugment: are DALI's, not of data.loader={data.loader}; use dali, or set both to 0"
        )

    def dali(samples: Samples, sampler: Sampler, transform: Transform) -> Loader:
        labels = _as_tensor(samples.labels).to(device)
        if isinstance(samples, FileSet):
            photometric = Photometric(
                augment.color_jitter,
                augment.randaugment,
                augment.randaugment_magnitude,
                config.seed + shard.rank,
            )
            decoder = Decoder(data.decoder == "gpu", data.hw_decoder_load)
            return StreamLoader(
                samples,
                labels,
                sampler,
                transform,
                device,
                data.num_threads,
                data.prefetch,
                decoder,
                photometric,
            )
        images = _as_tensor(samples.images)
        if images.nbytes <= to_bytes(data.resident_limit):
            images = images.to(device)
        return DaliLoader(images, labels, sampler, transform, device, data.num_threads, data.prefetch)

    def reference(samples: Samples, sampler: Sampler, transform: Transform) -> Loader:
        from pipeline.data.loaders.reference import (
            ArraySource,
            FileSource,
            ReferenceLoader,
        )  # with torchvision, whose import takes seconds

        source = (
            FileSource(samples) if isinstance(samples, FileSet) else ArraySource(_as_tensor(samples.images))
        )
        return ReferenceLoader(
            source, _as_tensor(samples.labels), sampler, transform, device, workers, data.prefetch
        )

    def synthetic(samples: Samples, sampler: Sampler, transform: Transform) -> Loader:
        size = (samples.view.size, samples.view.size) if isinstance(samples, FileSet) else samples.image_size
        return SyntheticLoader(
            (*size, splits.num_channels), splits.num_classes, sampler, transform, device, config.seed
        )

    def fused(samples: Samples, sampler: Sampler, transform: Transform) -> Loader:
        if device.type != "cuda":
            raise UserError(
                "data.loader: fused runs on a GPU only; use data.loader=dali, which has a CPU backend"
            )
        if isinstance(samples, FileSet):
            raise UserError(
                f"data.loader: fused keeps all images on the GPU, but those of {data.root} are larger than data.cache_below="
                f"{data.cache_below} and streamed from their files; use data.loader=dali"
            )
        images, labels = _as_tensor(samples.images), _as_tensor(samples.labels)
        if images.nbytes > to_bytes(data.resident_limit):
            raise UserError(
                f"data.loader: fused keeps all images on the GPU, but {images.nbytes} bytes are more than data.resident_limit="
                f"{data.resident_limit}; raise that, or use data.loader=dali"
            )
        drawn = augment if isinstance(sampler, TrainSampler) else None
        return FusedLoader(
            images.to(device), labels.to(device), sampler, transform, config.seed, drawn, shard
        )

    return {"dali": dali, "fused": fused, "reference": reference, "synthetic": synthetic}[data.loader]


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory (copied only where it is read-only, which torch has no word for)."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
