"""The readable oracle: one image at a time with torchvision's functions, batched by torch's DataLoader."""

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms.v2 import functional as F

from pipeline.data.base import PositionedLoader, Transform
from pipeline.data.batch import Batch
from pipeline.data.sampling import BatchPlan, Sampler, plans_from


def transform_image(image: torch.Tensor, draws: np.ndarray | None, transform: Transform) -> torch.Tensor:
    """Pad, crop, flip, fill the Cutout box, normalise.

    Args:
        image: (C, H, W) uint8.
        draws: (5,) int32 crop_y, crop_x, flip, cutout_y, cutout_x; None for evaluation.
        transform: padding, box, mean, standard deviation and type.

    Returns:
        (C, H, W) of `transform.dtype`.
    """
    _, height, width = image.shape
    if draws is not None:
        crop_y, crop_x, flip, cutout_y, cutout_x = draws.tolist()
        padded = F.pad(image, [transform.crop_padding] * 4, fill=0)
        image = F.crop(padded, crop_y, crop_x, height, width)
        if flip:
            image = F.horizontal_flip(image)
        if transform.cutout:
            top, left = max(cutout_y, 0), max(cutout_x, 0)
            bottom, right = min(cutout_y + transform.cutout, height), min(cutout_x + transform.cutout, width)
            fill = torch.tensor(transform.cutout_fill, dtype=torch.uint8)[:, None, None]
            image = F.erase(image, top, left, bottom - top, right - left, fill)
    return F.normalize(image.float(), transform.mean_255, transform.std_255).to(transform.dtype)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to the trainer's process group is the trainer's: it saves, and then ends its workers by a signal of its own."""
    os.setpgrp()


class _Batches(IterableDataset):
    """The endless stream of batches from (epoch, step); of W workers, worker w makes every W-th."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, sampler: Sampler, transform: Transform, epoch: int, step: int):
        self._images, self._labels, self._sampler, self._transform = images, labels, sampler, transform
        self._epoch, self._step = epoch, step

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, plan in enumerate(plans_from(self._sampler, self._epoch, self._step)):
            if number % every == first:
                yield self._load(plan)

    def _load(self, plan: BatchPlan) -> tuple[torch.Tensor, ...]:
        indices = torch.from_numpy(np.array(plan.indices))
        images = rearrange(self._images[indices], "b h w c -> b c h w")
        draws = [None] * len(images) if plan.draws is None else plan.draws
        batch = torch.stack([transform_image(image, draw, self._transform) for image, draw in zip(images, draws, strict=True)])
        return batch, self._labels[indices], torch.from_numpy(plan.valid), indices


class ReferenceLoader(PositionedLoader):
    """Same draws and same pixels as every other loader, by other means.

    Args:
        images: (N, H, W, C) uint8 in host memory.
        labels: (N,) int64 in host memory.
        sampler, transform, device: as for `DaliLoader`.
        num_workers: processes that load beside this one; 0 loads in this one.
        prefetch: batches prepared ahead by each worker.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        num_workers: int = 0,
        prefetch: int = 2,
    ):
        super().__init__(sampler)
        self._arguments = (images, labels, sampler, transform)
        self._device, self._num_workers, self._prefetch = device, num_workers, prefetch
        self._memory_format = transform.memory_format
        self._batches: Iterator[Any] = iter(())

    def _restart(self, epoch: int, step: int) -> None:
        context = None
        if self._num_workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])  # takes seconds: once, and not once a worker
        self._batches = iter(
            DataLoader(
                _Batches(*self._arguments, epoch, step),
                batch_size=None,
                num_workers=self._num_workers,
                prefetch_factor=self._prefetch if self._num_workers else None,
                pin_memory=self._device.type == "cuda",
                worker_init_fn=_leave_signals_to_the_trainer,
                multiprocessing_context=context,
            )
        )

    def _next(self) -> Batch:
        images, labels, valid, indices = (tensor.to(self._device, non_blocking=True) for tensor in next(self._batches))
        return Batch(images.contiguous(memory_format=self._memory_format), labels, valid, indices)
