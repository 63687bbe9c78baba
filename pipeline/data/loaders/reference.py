"""The readable oracle: one image at a time with torchvision's functions, batched by torch's DataLoader."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms.v2 import functional as F

from pipeline.data.batch import Batch
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.files.decode import images_of_any_size
from pipeline.data.loaders.base import PositionedLoader, Transform
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler, cutout_side, plans_from
from pipeline.errors import TrainingError


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
        image = _fill_box(image, cutout_y, cutout_x, transform.cutout, transform)
    return _normalise(image, transform)


def _fill_box(image: torch.Tensor, y: int, x: int, side: int, transform: Transform) -> torch.Tensor:
    """Cutout: fill a square, as far as it is inside the (C, H, W) image; nothing where its side is 0."""
    if not side:
        return image
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + side, image.shape[1]), min(x + side, image.shape[2])
    fill = torch.tensor(transform.cutout_fill, dtype=torch.uint8)[:, None, None]
    return F.erase(image, top, left, bottom - top, right - left, fill)


def _normalise(image: torch.Tensor, transform: Transform) -> torch.Tensor:
    return F.normalize(image.float(), transform.mean_255, transform.std_255).to(transform.dtype)


class Source(Protocol):
    """Where images come from: one at a time, ready for the model."""

    def __call__(
        self, index: int, draws: np.ndarray | None, plan: BatchPlan, transform: Transform
    ) -> torch.Tensor:
        """(C, H, W) of `transform.dtype`: a sample as the draws (a row of `plan.draws`, or None for evaluation) want it."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Images (N, H, W, C) uint8 in host memory."""

    images: torch.Tensor

    def __call__(
        self, index: int, draws: np.ndarray | None, plan: BatchPlan, transform: Transform
    ) -> torch.Tensor:
        return transform_image(rearrange(self.images[index], "h w c -> c h w"), draws, transform)


@dataclass(frozen=True)
class FileSource:
    """Images in files, by Pillow."""

    files: FileSet

    def __call__(
        self, index: int, draws: np.ndarray | None, plan: BatchPlan, transform: Transform
    ) -> torch.Tensor:
        with images_of_any_size():
            if draws is None or plan.image_size is None:
                return _normalise(_channels_first(self.files.centre(index)), transform)
            image = _channels_first(self.files.crop(index, draws[:4], plan.image_size))
        if draws[4]:
            image = F.horizontal_flip(image)
        side = cutout_side(transform.cutout, plan.image_size, self.files.size)
        return _normalise(_fill_box(image, int(draws[5]), int(draws[6]), side, transform), transform)


def _channels_first(image: np.ndarray) -> torch.Tensor:
    return rearrange(torch.from_numpy(image.copy()), "h w c -> c h w")


def _depend_on_the_trainer(worker: int) -> None:
    """A signal to the trainer's process group is the trainer's: it saves, and then ends its workers by a signal of its own.

    Where it has gone without one, its workers go too. torch's own watch over a worker's parent sees the fork server, which goes on for as
    long as there are workers.
    """
    os.setpgrp()
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def follow() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow", daemon=True).start()


class _Batches(IterableDataset):
    """The endless stream of batches from (epoch, step); of W workers, worker w makes every W-th."""

    def __init__(
        self,
        source: Source,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        epoch: int,
        step: int,
    ):
        self._source, self._labels, self._sampler, self._transform = source, labels, sampler, transform
        self._epoch, self._step = epoch, step

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...] | TrainingError]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, plan in enumerate(plans_from(self._sampler, self._epoch, self._step)):
            if number % every == first:
                yield self._attempt(plan)

    def _attempt(self, plan: BatchPlan) -> tuple[torch.Tensor, ...] | TrainingError:
        """A file that cannot be read is given back as an error: raised here, torch would put the worker's traceback before its message."""
        try:
            return self._load(plan)
        except TrainingError as error:
            return error

    def _load(self, plan: BatchPlan) -> tuple[torch.Tensor, ...]:
        indices = torch.from_numpy(np.array(plan.indices))
        draws = [None] * len(indices) if plan.draws is None else plan.draws
        images = [
            self._source(index, draw, plan, self._transform)
            for index, draw in zip(indices.tolist(), draws, strict=True)
        ]
        return torch.stack(images), self._labels[indices], torch.from_numpy(plan.valid), indices


class ReferenceLoader(PositionedLoader):
    """Same draws and same pixels as every other loader, by other means.

    Args:
        source: of the images.
        labels: (N,) int64 in host memory.
        sampler, transform, device: as for `DaliLoader`.
        num_workers: processes that load beside this one; 0 loads in this one.
        prefetch: batches prepared ahead by each worker.
    """

    def __init__(
        self,
        source: Source,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        num_workers: int = 0,
        prefetch: int = 2,
    ):
        super().__init__(sampler)
        self._arguments = (source, labels, sampler, transform)
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
                worker_init_fn=_depend_on_the_trainer,
                multiprocessing_context=context,
                generator=torch.Generator(),  # not torch's own, which dropout draws from: a run that is continued restarts its loader
            )
        )

    def _next(self) -> Batch:
        loaded = next(self._batches)
        if isinstance(loaded, TrainingError):
            raise loaded
        images, labels, valid, indices = (tensor.to(self._device, non_blocking=True) for tensor in loaded)
        return Batch(images.contiguous(memory_format=self._memory_format), labels, valid, indices)
