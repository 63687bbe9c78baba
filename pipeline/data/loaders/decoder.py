"""Chooses the hardware that decodes streamed images on this machine: `data.decoder`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.config import Config, FileData
from pipeline.data.loaders.jpeg_engines import count_jpeg_engines
from pipeline.process.cores import share_of_cores
from pipeline.process.world import read_world

if TYPE_CHECKING:
    import torch

DecoderName = Literal["gpu", "cpu", "both"]

# CPU threads of a process from which its CPU is the faster decoder end to end: it leaves the GPU to the step.
# Measured on an H200 with 16 cores, ResNet-50 at 224 pixels, 14 threads: 8,650 images/sec, and 7,150 by the
# GPU. A GPU without JPEG engines decodes on the processors that the step needs.
_ENOUGH_THREADS = 12
_ENOUGH_WITHOUT_ENGINES = 8


@dataclass(frozen=True)
class Decoder:
    """The decoder of streamed images.

    Attributes:
        name: `both`: the CPU decodes, and the GPU a share of the images (`data.gpu_share`).
        reason: why, unless `data.decoder` names it.
    """

    name: DecoderName
    reason: str = ""

    def describe(self) -> str:
        """Return the line of the log."""
        return f"decoder {self.name}: {self.reason or 'as data.decoder says'}"


def choose_decoder(config: Config, device: "torch.device", began_with: str | None = None) -> Decoder:
    """Return the decoder that `data.decoder` means on a device.

    Args:
        config: of a run on files.
        device: of the batches.
        began_with: the decoder of the run so far, if it is continued: decoders differ in their rounding, so
            `auto` keeps it where it can.
    """
    data = config.data
    assert isinstance(data, FileData), "only images in files are decoded in training"
    if device.type != "cuda":
        return Decoder("cpu", "" if data.decoder == "cpu" else "there is no GPU")
    if data.decoder != "auto":
        return Decoder(data.decoder)
    if began_with in ("gpu", "cpu", "both"):
        return Decoder(began_with, "the run used it before (data.decoder=auto)")
    threads = min(data.num_threads, share_of_cores(read_world().local_size))
    engines = count_jpeg_engines(device) if threads < _ENOUGH_THREADS else 0
    enough = _ENOUGH_THREADS if engines else _ENOUGH_WITHOUT_ENGINES
    if threads < enough:
        which = f"the GPU has {engines} JPEG engines" if engines else "the GPU has no JPEG engine"
        limit = " (data.num_threads)" if threads == data.num_threads else ""
        return Decoder("gpu", f"{which}, and {threads} CPU threads{limit} would be too slow")
    reason = f"{threads} CPU threads are enough, and leave the GPU to the training step"
    if data.gpu_share:
        return Decoder("both", f"{reason}; the GPU helps with data.gpu_share")
    if data.gpu_share is None and any(size < data.image_size for _, size in config.augment.progressive):
        return Decoder("both", f"{reason}; at smaller sizes, which the step takes faster, the GPU helps")
    return Decoder("cpu", reason)


def share_on_gpu(decoder: DecoderName, gpu_share: float | None, size: int | None, full_size: int) -> float:
    """Return the fraction of the images of one batch that the GPU decodes.

    Args:
        decoder: on a GPU.
        gpu_share: as `data.gpu_share`.
        size: height and width of training images in this batch, in pixels; None in evaluation.
        full_size: the largest size of the run: `data.image_size`.

    >>> share_on_gpu("both", None, 112, 224), share_on_gpu("both", None, 224, 224)
    (0.75, 0.0)
    """
    if decoder != "both":
        return 1.0 if decoder == "gpu" else 0.0
    if gpu_share is not None:
        return gpu_share
    return 0.0 if size is None else max(1 - (size / full_size) ** 2, 0.0)
