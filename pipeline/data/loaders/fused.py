"""Loads images in GPU memory with our Triton kernels: order, draws, and all of the augmentation."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange

from pipeline.config import AugmentConfig
from pipeline.data.batch import Batch
from pipeline.data.loaders.base import PositionedLoader, Transform
from pipeline.data.sampling.batch_plan import Sampler, Shard, TrainSampler

# One launch makes about this many images: enough to hide the overhead of the launch, few enough for the L2
# cache of a large GPU.
_GROUP_IMAGES = 8192


class FusedLoader(PositionedLoader):
    """Loads batches of a uint8 image set in GPU memory, several batches per kernel launch.

    The draws are made on the device too: one small kernel and a sort for an epoch. The numbers, and so the
    pixels, are the same as with every other loader.

    Args:
        images: (N, H, W, C) uint8 on the GPU.
        labels: (N,) int64 on the GPU.
        sampler: batch size and steps per epoch.
        transform: normalisation, padding, Cutout, type and layout.
        seed: of the draws.
        augment: what to draw; None for evaluation, in the order of the sampler.
        shard: this process among the processes of the run.

    Attributes:
        images: all images, in the order of the sample ids.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        seed: int,
        augment: AugmentConfig | None,
        shard: Shard,
    ):
        super().__init__(sampler)
        self.images, self._labels, self._transform = images, labels, transform
        self._seed, self._augment, self._shard = seed, augment, shard
        self._batch_size = sampler.local_batch_size
        self._valid = torch.ones(
            self.steps_per_epoch * self._batch_size, dtype=torch.bool, device=images.device
        )
        self._fixed = self._plan_without_draws(sampler) if augment is None else None
        self._group = max(_GROUP_IMAGES // self._batch_size, 1)
        self._ready: deque[Batch] = deque()
        self._groups: Iterator[list[Batch]] = iter(())

    def show(self, samples: torch.Tensor) -> Batch:
        """Return chosen samples of an evaluation; see `ResidentLoader`."""
        assert self._fixed is not None, "samples for training are drawn"
        images = self._augment_images(self.images, samples, self._fixed[1], slice(0, len(samples)))
        valid = torch.ones_like(samples, dtype=torch.bool)
        return Batch(images, self._labels[samples], valid, samples)

    def _restart(self, epoch: int, step: int) -> None:
        self._ready.clear()
        self._groups = self._make_groups(epoch, step)

    def _next(self) -> Batch:
        if not self._ready:
            self._ready.extend(next(self._groups))
        return self._ready.popleft()

    def _make_groups(self, epoch: int, step: int) -> Iterator[list[Batch]]:
        while True:
            order, draws = self._fixed or self._draw(epoch)
            samples = self._samples_of(epoch)
            while step < self.steps_per_epoch:
                count = min(self._group, self.steps_per_epoch - step)
                yield self._make_batches(order, draws, samples, slice(step, step + count))
                step += count
            epoch, step = epoch + 1, 0

    def _samples_of(self, epoch: int) -> torch.Tensor | None:
        """Return the sample of each slot of the order; None if slot i shows sample i."""
        samples = self._sampler.samples_of(epoch) if isinstance(self._sampler, TrainSampler) else None
        return None if samples is None else torch.from_numpy(samples).to(self.images.device)

    def _plan_without_draws(self, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sample ids of an evaluation, and draws that change nothing. Sets `_valid`."""
        plans = [sampler.plan(0, step) for step in range(sampler.steps_per_epoch)]
        device = self.images.device
        self._valid = torch.from_numpy(np.concatenate([plan.valid for plan in plans])).to(device)
        order = torch.from_numpy(np.concatenate([plan.indices for plan in plans])).to(device)
        return order, torch.zeros(len(self.images), 5, dtype=torch.int32, device=device)

    def _draw(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw an epoch. Return this process's sample ids, batch after batch, and all samples' draws."""
        from kernels.epoch_draws.op import epoch_draws
        from kernels.epoch_draws.reference import DrawRanges

        augment = self._augment
        assert augment is not None
        height, width = self.images.shape[1:3]
        ranges = DrawRanges(
            image_size=(height, width),
            padding=augment.crop_padding,
            flip=augment.flip,
            cutout=augment.cutout,
            inside=augment.cutout_mode == "inside",
            jitter=augment.jitters,
        )
        order, draws = epoch_draws(self._seed, epoch, self.num_samples, ranges, self.images.device)
        world, batch = self._shard.world_size, self._batch_size
        order = order[: self.steps_per_epoch * world * batch]
        by_rank = rearrange(order, "(step rank image) -> rank (step image)", rank=world, image=batch)
        return by_rank[self._shard.rank].contiguous(), draws

    def _make_batches(
        self, order: torch.Tensor, draws: torch.Tensor, samples: torch.Tensor | None, steps: slice
    ) -> list[Batch]:
        """Make the batches of some steps.

        Args:
            order: slots, batch after batch.
            draws: of each slot.
            samples: of each slot; None: slot i shows sample i.
            steps: start and stop in the epoch.
        """
        batch = self._batch_size
        rows = slice(steps.start * batch, steps.stop * batch)
        chosen = order[rows]
        if samples is None:
            images = self._augment_images(self.images, order, draws, rows)
        else:  # the kernel takes image and draws by one number: gather both
            draws, chosen = draws[chosen], samples[chosen]
            in_order = torch.arange(len(chosen), device=chosen.device)
            images = self._augment_images(self.images[chosen], in_order, draws, slice(0, len(chosen)))
        tensors = (images, self._labels[chosen], self._valid[rows], chosen)
        return [Batch(*parts) for parts in zip(*(tensor.split(batch) for tensor in tensors), strict=True)]

    def _augment_images(
        self, images: torch.Tensor, order: torch.Tensor, draws: torch.Tensor, rows: slice
    ) -> torch.Tensor:
        """Gather the images of some rows of ORDER, apply their draws and normalise, in one kernel."""
        from kernels.augment.op import augment
        from kernels.augment.reference import Augmentation

        transform = self._transform
        augmentation = Augmentation(
            transform.mean,
            transform.std,
            transform.crop_padding,
            transform.cutout,
            transform.dtype,
            transform.reflect,
            transform.brightness,
            transform.contrast,
        )
        count = rows.stop - rows.start
        images = augment(images, order, draws, augmentation, start=rows.start, count=count)
        return images.contiguous(memory_format=transform.memory_format)
