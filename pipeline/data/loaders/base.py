"""Holds the parts that all loaders share: the position in the stream of batches, and `Transform`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.batch import Batch
from pipeline.data.sampling.batch_plan import Sampler

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Transform:
    """The last step from pixels to the model's input: y = (x - 255 mean) / (255 std), with type and layout.

    In training, (y + b) (1 + c) follows with the draws of brightness and contrast (`jitter_of`), outside of
    the Cutout box, which keeps its fill.

    Attributes:
        mean, std: per channel, fractions of 1.
        dtype: torch.float16 or torch.float32.
        channels_last: memory layout of the (B, C, H, W) images.
        crop_padding: pixels of border per side around the image before the crop.
        cutout: side of the Cutout box in pixels, 0 for none.
        reflect: the border is the image mirrored at its edges, and not black.
        brightness, contrast: the largest b and c; if both are 0 there are no draws of them.
        trivial_augment: apply the operation in the last two columns of the draws, after crop and flip.
    """

    mean: Sequence[float]
    std: Sequence[float]
    dtype: "torch.dtype"
    channels_last: bool = True
    crop_padding: int = 0
    cutout: int = 0
    reflect: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    trivial_augment: bool = False

    @property
    def mean_255(self) -> list[float]:
        return [255 * m for m in self.mean]

    @property
    def std_255(self) -> list[float]:
        return [255 * s for s in self.std]

    @property
    def cutout_fill(self) -> list[int]:
        """Return the uint8 colour nearest to the mean. (The paper fills with 0 after normalisation.)"""
        return [int(np.rint(m)) for m in self.mean_255]

    @property
    def jitters(self) -> bool:
        """Return True if brightness or contrast change."""
        return self.brightness > 0 or self.contrast > 0

    def jitter_of(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute b and 1 + c of images, from their draws (B, 7) int32: (B,) float32 each.

        The float32 arithmetic is that of the kernel, bit for bit.
        """
        shift = np.float32(self.brightness / 2**31) * draws[:, 5].astype(np.float32)
        change = np.float32(self.contrast / 2**31) * draws[:, 6].astype(np.float32)
        return shift, np.float32(1) + change

    @property
    def memory_format(self) -> "torch.memory_format":
        import torch

        return torch.channels_last if self.channels_last else torch.contiguous_format


class PositionedLoader(ABC):
    """Base of all loaders. It knows the step of the next batch, and restarts only for another step.

    Attributes:
        finish: changes the batch of an epoch and a step, before it is delivered; None: nothing is left to do.
    """

    finish: Callable[[Batch, int, int], Batch] | None = None

    def __init__(self, sampler: Sampler):
        self.steps_per_epoch = sampler.steps_per_epoch
        self.num_samples = sampler.num_samples
        self._sampler = sampler
        self._step: int | None = None  # of the next batch; None before the first start

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield batches without end, from a step on (counted from 0 over all epochs)."""
        assert step >= 0, step
        if self._step != step:
            self._restart(*divmod(step, self.steps_per_epoch))
            self._step = step
        while True:
            batch = self._next()
            if self.finish is not None:
                batch = self.finish(batch, *divmod(step, self.steps_per_epoch))
            step += 1
            self._step = step
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield one whole epoch: the first one of which no batch was taken yet."""
        first_epoch = -(-(self._step or 0) // self.steps_per_epoch)
        return islice(self.batches_from(first_epoch * self.steps_per_epoch), self.steps_per_epoch)

    @abstractmethod
    def _restart(self, epoch: int, step: int) -> None:
        """Make `_next` continue at step STEP of an epoch."""

    @abstractmethod
    def _next(self) -> Batch:
        """Return the next batch. After the last batch of an epoch comes the first of the next."""
