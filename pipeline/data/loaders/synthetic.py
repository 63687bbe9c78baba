"""Delivers one fixed random batch per image size, already on the device: to time a step without loading."""

from dataclasses import replace

import torch
from einops import rearrange

from pipeline.data.batch import Batch
from pipeline.data.loaders.base import PositionedLoader, Transform
from pipeline.data.sampling.batch_plan import Sampler
from pipeline.data.sampling.stream_plan import StreamSampler


class SyntheticLoader(PositionedLoader):
    """Delivers the same normally distributed images and uniform labels at every step, without work.

    Args:
        image_shape: (H, W, C).
        num_classes: labels are in [0, num_classes).
        sampler: gives batch size and steps per epoch; the indices are those of its first batch.
        transform: type and layout.
        device: of the batch.
        seed: of the images and labels.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        seed: int = 0,
    ):
        super().__init__(sampler)
        self._seed, self._image_shape, self._num_classes = seed, image_shape, num_classes
        self._transform, self._device = transform, device
        self._first, self._end = (sampler.plan(0, step) for step in (0, self.steps_per_epoch - 1))
        self._batches: dict[int | None, tuple[Batch, Batch]] = {}
        self._position_of_next = (0, 0)
        self._batch_of(self._first.image_size)

    def _batch_of(self, image_size: int | None) -> tuple[Batch, Batch]:
        """Return the batch of an image size (None: the only size), and the last batch of an epoch.

        They differ in `valid`.
        """
        if image_size not in self._batches:
            height, width, channels = self._image_shape
            if image_size is not None:
                height = width = image_size
            indices = self._first.indices
            # the same images whatever sizes came before
            generator = torch.Generator().manual_seed(self._seed)
            noise = torch.randn(len(indices), height, width, channels, generator=generator)
            images = rearrange(noise, "b h w c -> b c h w").to(self._device, self._transform.dtype)
            images = images.contiguous(memory_format=self._transform.memory_format)
            labels = torch.randint(self._num_classes, (len(indices),), generator=generator).to(self._device)
            valid, last_valid = (
                torch.from_numpy(plan.valid.copy()).to(self._device) for plan in (self._first, self._end)
            )
            batch = Batch(images, labels, valid, torch.from_numpy(indices.copy()).to(self._device))
            self._batches[image_size] = batch, replace(batch, valid=last_valid)
        return self._batches[image_size]

    def _restart(self, epoch: int, step: int) -> None:
        self._position_of_next = (epoch, step)

    def _next(self) -> Batch:
        epoch, step = self._position_of_next
        size = self._sampler.image_size(epoch, step) if isinstance(self._sampler, StreamSampler) else None
        batch, last = self._batch_of(size)
        is_last = step + 1 == self.steps_per_epoch
        self._position_of_next = (epoch + 1, 0) if is_last else (epoch, step + 1)
        return last if is_last else batch
