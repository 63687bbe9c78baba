"""Builds the loader that `data.loader` names. Imports it, and torch, only then."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import Config, FileData, to_bytes
from pipeline.data.batch import NUM_CHANNELS, Loader
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.image_set import Samples
from pipeline.data.loaders.base import Transform
from pipeline.data.loaders.decoder import Decoder
from pipeline.data.sampling.batch_plan import Sampler, Shard, TrainSampler
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LoaderContext:
    """Holds what the loaders of a run have in common."""

    config: Config
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    device: "torch.device"
    shard: Shard
    decoder: Decoder | None = None


def build_loader(context: LoaderContext, samples: Samples, sampler: Sampler, transform: Transform) -> Loader:
    """Build the loader that `data.loader` names.

    Raises:
        UserError: the loader does not suit the device or the images.
    """
    return _BUILDERS[context.config.data.loader](context, samples, sampler, transform)


def _build_dali(context: LoaderContext, samples: Samples, sampler: Sampler, transform: Transform) -> Loader:
    from pipeline.data.loaders.dali_arrays import DaliArrayLoader
    from pipeline.data.loaders.dali_decoding import Decoding
    from pipeline.data.loaders.dali_files import DaliFileLoader, Photometric

    data, augment, device = context.config.data, context.config.augment, context.device
    labels = _as_tensor(samples.labels).to(device)
    if isinstance(samples, FileSet):
        assert isinstance(data, FileData), "only folders and shards have files"
        assert context.decoder is not None, "files are decoded"
        decoding = Decoding(
            data.num_threads, data.prefetch, context.decoder.name, data.hw_decoder_load, data.gpu_share
        )
        photometric = Photometric(
            augment.color_jitter,
            augment.randaugment,
            augment.randaugment_magnitude,
            seed=context.config.seed + context.shard.rank,
        )
        return DaliFileLoader(samples, labels, sampler, transform, device, decoding, photometric)
    images = _as_tensor(samples.images)
    if images.nbytes <= to_bytes(data.resident_limit):
        images = images.to(device)
    return DaliArrayLoader(images, labels, sampler, transform, device, data.num_threads, data.prefetch)


def _build_fused(context: LoaderContext, samples: Samples, sampler: Sampler, transform: Transform) -> Loader:
    from pipeline.data.loaders.fused import FusedLoader

    config, device = context.config, context.device
    data = config.data
    if device.type != "cuda":
        raise UserError(
            "data.loader: fused runs on a GPU only; use data.loader=dali, which has a CPU backend"
        )
    if isinstance(samples, FileSet):
        assert isinstance(data, FileData), "only folders and shards have files"
        raise UserError(
            f"data.loader: fused keeps all images on the GPU, but those of {data.root} are larger than "
            f"data.cache_below={data.cache_below} and streamed from their files; use data.loader=dali"
        )
    images, labels = _as_tensor(samples.images), _as_tensor(samples.labels)
    if images.nbytes > to_bytes(data.resident_limit):
        raise UserError(
            f"data.loader: fused keeps all images on the GPU, but {images.nbytes} bytes are more than "
            f"data.resident_limit={data.resident_limit}; raise data.resident_limit, or use data.loader=dali"
        )
    augment = config.augment if isinstance(sampler, TrainSampler) else None
    return FusedLoader(
        images.to(device), labels.to(device), sampler, transform, config.seed, augment, context.shard
    )


def _build_reference(
    context: LoaderContext, samples: Samples, sampler: Sampler, transform: Transform
) -> Loader:
    from pipeline.data.loaders.reference import ArraySource, FileSource, ReferenceLoader

    data, labels = context.config.data, _as_tensor(samples.labels)
    source = FileSource(samples) if isinstance(samples, FileSet) else ArraySource(_as_tensor(samples.images))
    num_workers = data.num_threads if data.num_threads > 1 else 0
    return ReferenceLoader(source, labels, sampler, transform, context.device, num_workers, data.prefetch)


def _build_synthetic(
    context: LoaderContext, samples: Samples, sampler: Sampler, transform: Transform
) -> Loader:
    from pipeline.data.loaders.synthetic import SyntheticLoader

    size = (samples.view.size, samples.view.size) if isinstance(samples, FileSet) else samples.image_size
    shape = (*size, NUM_CHANNELS)
    return SyntheticLoader(
        shape, context.num_classes, sampler, transform, context.device, context.config.seed
    )


_BUILDERS: dict[str, Callable[[LoaderContext, Samples, Sampler, Transform], Loader]] = {
    "dali": _build_dali,
    "fused": _build_fused,
    "reference": _build_reference,
    "synthetic": _build_synthetic,
}


def _as_tensor(array: np.ndarray) -> "torch.Tensor":
    """Return a tensor that shares the array's memory. Read-only memory is copied: torch cannot share it."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())
