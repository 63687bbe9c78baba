"""The synthetic loader: one fixed random batch on the device, to time a step without a loader."""

from dataclasses import replace

import torch
from einops import rearrange

from pipeline.data.base import PositionedLoader, Transform
from pipeline.data.batch import Batch
from pipeline.data.sampling import Sampler


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
        generator = torch.Generator().manual_seed(seed)
        batch_size = sampler.local_batch_size
        images = rearrange(torch.randn(batch_size, *image_shape, generator=generator), "b h w c -> b c h w")
        images = images.to(device, transform.dtype).contiguous(memory_format=transform.memory_format)
        labels = torch.randint(num_classes, (batch_size,), generator=generator).to(device)
        indices = torch.from_numpy(sampler.plan(0, 0).indices.copy()).to(device)
        self._batch = Batch(images, labels, torch.from_numpy(sampler.plan(0, 0).valid.copy()).to(device), indices)
        last_valid = torch.from_numpy(sampler.plan(0, self.steps_per_epoch - 1).valid.copy()).to(device)
        self._last = replace(self._batch, valid=last_valid)
        self._step = 0

    def _restart(self, epoch: int, step: int) -> None:
        self._step = step

    def _next(self) -> Batch:
        self._step += 1
        return self._last if self._step % self.steps_per_epoch == 0 else self._batch
