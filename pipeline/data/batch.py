"""Defines `Batch`, which every loader delivers, and `Loader`, the protocol of all loaders."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

NUM_CHANNELS = 3  # of every image: RGB


@dataclass(frozen=True)
class Batch:
    """One process's share of the batch of one step, on the device, ready for the model.

    Attributes:
        images: (B, 3, H, W) float16 or float32, normalised, channels_last.
        labels: (B,) int64, class indices.
        valid: (B,) bool; False marks the padding of the last evaluation batch.
        indices: (B,) int64, sample ids in the data set.
    """

    images: "torch.Tensor"
    labels: "torch.Tensor"
    valid: "torch.Tensor"
    indices: "torch.Tensor"


class Loader(Protocol):
    """A stream of batches.

    The content of a batch depends only on the config and on its step, not on the batches read before.

    Attributes:
        steps_per_epoch: batches in a whole epoch, the same on every process.
        num_samples: samples of the data set (all processes together).
    """

    steps_per_epoch: int
    num_samples: int

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield batches without end. The first one is that of step STEP, counted from 0 over all epochs."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield one whole epoch: the first one of which no batch was taken yet."""
        ...


@runtime_checkable
class ResidentLoader(Loader, Protocol):
    """A loader whose images are all in the memory of the device."""

    def show(self, samples: "torch.Tensor") -> Batch:
        """Return chosen samples as an evaluation sees them. The host waits for nothing.

        Args:
            samples: (B,) int64 sample ids, on the device.
        """
        ...
