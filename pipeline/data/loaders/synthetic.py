"""The synthetic loader: one fixed random batch on the device (one for each size of the images), to time a step without a loader."""

from dataclasses import replace

import torch
from einops import rearrange

from pipeline.data.batch import Batch
from pipeline.data.loaders.base import PositionedLoader, Transform
from pipeline.data.sampling.batch_plan import Sampler, StreamSampler


class SyntheticLoader(PositionedLoader):
    """Delivers the same normally distributed images and uniform labels at every step, at no cost.

    Args:
        image_shape: (H, W, C).
        num_classes: labels are in [0, num_classes).
        sampler: gives batch size and steps per epoch; the indices are those of its first batch.
        transform: type and layout.
        device: where the batch lives.
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
        self._seed = seed
        self._image_shape, self._num_classes, self._transform, self._device = (
            image_shape,
            num_classes,
            transform,
            device,
        )
        self._first, self._end = (sampler.plan(0, step) for step in (0, self.steps_per_epoch - 1))
        self._batches: dict[int | None, tuple[Batch, Batch]] = {}
        self._position_of_next = (0, 0)
        self._batch_of(self._first.image_size)

    def _batch_of(self, image_size: int | None) -> tuple[Batch, Batch]:
        """The batch of an image size (None: the only one), and the same with what is valid of an epoch's last."""
        if image_size not in self._batches:
            height, width, channels = (
                self._image_shape if image_size is None else (image_size, image_size, self._image_shape[2])
            )
            indices, generator = (
                self._first.indices,
                torch.Generator().manual_seed(self._seed),
            )  # whatever sizes came before
            images = rearrange(
                torch.randn(len(indices), height, width, channels, generator=generator), "b h w c -> b c h w"
            )
            images = images.to(self._device, self._transform.dtype).contiguous(
                memory_format=self._transform.memory_format
            )
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
