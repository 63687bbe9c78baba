"""Builds the loaders of a run, after it has checked that keys and images fit together."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import Config, FileData, check_batches
from pipeline.config.rules import DRAWN_FROM_FILES, DRAWN_IN_MEMORY, SHOWN_FROM_FILES, changed_keys
from pipeline.data.batch import Loader
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.image_set import Samples, check_labels
from pipeline.data.datasets.splits import Splits
from pipeline.data.loaders.base import PositionedLoader, Transform
from pipeline.data.loaders.build_loader import LoaderContext, build_loader
from pipeline.data.loaders.decoder import Decoder, choose_decoder
from pipeline.data.sampling.batch_plan import EvalSampler, Shard, TrainSampler
from pipeline.data.sampling.progressive import training_resolutions
from pipeline.data.sampling.stream_plan import StreamSampler
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run.

    Attributes:
        train: shuffled and augmented batches, without end from a given step.
        test: every test image once per iteration.
        holdout: every held-out training image once per iteration; None without `data.holdout`.
        num_classes: of the data set, if it is known: labels are below it.
        class_sizes: training images of each class, if they are known: `loss.class_weights: balanced` is
            computed from them.
        decoder: of streamed images; None if DALI decodes none.
    """

    train: Loader
    test: Loader
    holdout: Loader | None
    num_classes: int | None = None
    class_sizes: tuple[int, ...] | None = None
    decoder: Decoder | None = None


def build_loaders(
    config: Config,
    splits: Splits,
    device: "torch.device",
    shard: Shard | None = None,
    decoder: Decoder | None = None,
) -> Loaders:
    """Build the loaders that `data.loader` names, for this process.

    Args:
        config: the run's config.
        splits: the data set, from `load_splits`.
        device: device of the batches.
        shard: this process among the processes of the run; default: a run of one process.
        decoder: that of all processes, from `decoder_for`; default: chosen for this process.

    Raises:
        UserError: the processes do not divide a batch size, or it is more than the training set.
    """
    decoder = decoder or decoder_for(config, splits.train, device)
    shard = shard or Shard()
    context = LoaderContext(config, splits.mean, splits.std, splits.num_classes, device, shard, decoder)
    check_batches(config, context.shard.world_size)
    splits.check_labels()
    _check_photometric(context, splits.train)
    _check_border(config, splits.train)
    sampler = _train_sampler(context, splits.train)
    train = build_loader(context, splits.train, sampler, _transform(context, augmented=True))
    if config.augment.erasing and isinstance(train, PositionedLoader) and config.data.loader != "synthetic":
        from pipeline.data.loaders.erasing import Erasing

        train.finish = Erasing(sampler, config.seed, config.augment.erasing)
    return Loaders(
        train=train,
        test=_build_eval_loader(context, splits.test),
        holdout=None if splits.holdout is None else _build_eval_loader(context, splits.holdout),
        num_classes=splits.num_classes,
        class_sizes=tuple(np.bincount(splits.train.labels, minlength=splits.num_classes).tolist()),
        decoder=decoder,
    )


def build_test_loader(
    config: Config,
    test: Samples,
    device: "torch.device",
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_classes: int,
) -> Loader:
    """Build a loader of test images for a network that has been trained. No training image is needed.

    Args:
        config: the run's config.
        test: the images.
        device: device of the batches.
        mean, std: of the network's images, per channel.
        num_classes: outputs of the network.

    Raises:
        UserError: a label is not one of the network, or a key does not fit the images.
    """
    decoder = decoder_for(config, test, device)
    context = LoaderContext(config, mean, std, num_classes, device, Shard(), decoder)
    check_labels("test", test, num_classes)
    if not isinstance(test, FileSet):
        _refuse_keys_of_streams(config, SHOWN_FROM_FILES)
    return _build_eval_loader(context, test)


def decoder_for(
    config: Config, samples: Samples, device: "torch.device", began_with: str | None = None
) -> Decoder | None:
    """Return the decoder of streamed images, as `choose_decoder` does; None if DALI decodes none."""
    if not isinstance(samples, FileSet) or config.data.loader != "dali":
        return None
    return choose_decoder(config, device, began_with)


def _check_photometric(context: LoaderContext, train: Samples) -> None:
    """Refuse the augmentation of DALI with other loaders; warn that DALI does not repeat its draws."""
    augment, loader = context.config.augment, context.config.data.loader
    of_folder = isinstance(context.config.data, FileData)  # `load_config` warns of the keys elsewhere
    if not of_folder or not (augment.color_jitter or augment.randaugment):
        return
    if loader != "dali":
        raise UserError(
            f"augment.color_jitter and augment.randaugment: only DALI has them, not data.loader={loader}; "
            "use data.loader=dali, or set both to 0"
        )
    if isinstance(train, FileSet) and context.shard.rank == 0:
        _log.warning(
            "augment.color_jitter and augment.randaugment are drawn by DALI: a resumed run, or one on "
            "another number of processes, sees other colours; order, crops and flips stay the same"
        )


def _check_border(config: Config, train: Samples) -> None:
    """Raise a UserError if the images are too small for the reflected border of the crop."""
    augment = config.augment
    if augment.crop_border == "reflect" and not isinstance(train, FileSet):
        side = min(train.image_size)
        if augment.crop_padding >= side:
            raise UserError(
                f"augment.crop_padding: {augment.crop_padding} pixels cannot be mirrored from images of "
                f"{side}; give at most {side - 1}, or augment.crop_border=black"
            )


def _transform(context: LoaderContext, augmented: bool) -> Transform:
    import torch

    config = context.config
    # DALI has no bfloat16: autocast converts float16
    dtype = torch.float32 if config.precision.mode == "fp32" else torch.float16
    transform = Transform(context.mean, context.std, dtype, config.runtime.channels_last)
    if not augmented:
        return transform
    augment = config.augment
    return replace(
        transform,
        crop_padding=augment.crop_padding,
        cutout=augment.cutout,
        reflect=augment.crop_border == "reflect",
        brightness=augment.brightness,
        contrast=augment.contrast,
        trivial_augment=augment.trivial_augment,
    )


def _train_sampler(context: LoaderContext, train: Samples) -> TrainSampler:
    config, shard = context.config, context.shard
    augment, batch_size = config.augment, config.data.batch_size
    balance = train.labels if config.data.sampler == "balanced" else None
    if isinstance(train, FileSet):
        for key in changed_keys(config, DRAWN_IN_MEMORY):
            raise UserError(
                f"{key}: is for images in memory, but those of data.root are streamed from their files; "
                "remove the key (see data.cache_below; streamed images have augment.color_jitter)"
            )
        resolutions = training_resolutions(config, max(len(train) // batch_size, 1))
        return StreamSampler(train.sizes, batch_size, shard, config.seed, augment, resolutions, balance)
    _refuse_keys_of_streams(config, DRAWN_FROM_FILES + SHOWN_FROM_FILES)
    return TrainSampler(len(train), batch_size, shard, config.seed, train.image_size, augment, balance)


def _refuse_keys_of_streams(config: Config, keys: tuple[str, ...]) -> None:
    """Refuse keys of streamed images. Only the files tell that images are not streamed."""
    if isinstance(config.data, FileData):  # for other data sets `load_config` warns of these keys
        for key in changed_keys(config, keys):
            raise UserError(
                f"{key}: is for streamed images, but these images are decoded and kept in memory; "
                "remove the key (see data.cache_below)"
            )


def _build_eval_loader(context: LoaderContext, samples: Samples) -> Loader:
    count, world_size = len(samples), context.shard.world_size
    batch_size = min(context.config.data.eval_batch_size, -(-count // world_size) * world_size)
    sampler = EvalSampler(count, batch_size, context.shard)
    return build_loader(context, samples, sampler, _transform(context, augmented=False))
