"""Loads images one by one with torchvision and torch's DataLoader: the reference for all other loaders."""

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
from pipeline.data.loaders.trivial_augment import apply_trivial_augment
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler, plans_from
from pipeline.data.sampling.stream_plan import cutout_side
from pipeline.errors import TrainingError


def _apply_crop_and_flip(
    image: torch.Tensor, crop_y: int, crop_x: int, flip: int, transform: Transform
) -> torch.Tensor:
    """Pad a (C, H, W) image, crop its old size at (crop_y, crop_x), and flip it horizontally."""
    _, height, width = image.shape
    mode = "reflect" if transform.reflect else "constant"
    padded = F.pad(image, [transform.crop_padding] * 4, fill=0, padding_mode=mode)
    image = F.crop(padded, crop_y, crop_x, height, width)
    return F.horizontal_flip(image) if flip else image


def _apply_jitter(image: torch.Tensor, draws: np.ndarray, transform: Transform) -> torch.Tensor:
    """Change brightness and contrast of a normalised image, with its row of the draws."""
    if not transform.jitters:
        return image
    (shift,), (scale,) = transform.jitter_of(draws[None])
    return (image + float(shift)) * float(scale)


def _apply_cutout(image: torch.Tensor, y: int, x: int, side: int, transform: Transform) -> torch.Tensor:
    """Fill the part of a square that is inside the normalised (C, H, W) image; nothing if its side is 0."""
    if not side:
        return image
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + side, image.shape[1]), min(x + side, image.shape[2])
    fill = torch.tensor(transform.cutout_fill, dtype=torch.uint8)[:, None, None]
    return F.erase(image, top, left, bottom - top, right - left, _normalise(fill, transform))


def _normalise(image: torch.Tensor, transform: Transform) -> torch.Tensor:
    return F.normalize(image.float(), transform.mean_255, transform.std_255)


class Source(Protocol):
    """A source of images: one at a time, ready for the model."""

    def __call__(
        self, index: int, draws: np.ndarray | None, plan: BatchPlan, transform: Transform
    ) -> torch.Tensor:
        """Load one sample and apply its draws.

        Args:
            index: sample id.
            draws: the sample's row of `plan.draws`; None in evaluation.
            plan: of the batch.
            transform: normalisation, padding, Cutout and type.

        Returns:
            (C, H, W) of `transform.dtype`.
        """
        ...


@dataclass(frozen=True)
class ArraySource:
    """Images (N, H, W, C) uint8 in host memory."""

    images: torch.Tensor

    def __call__(
        self, index: int, draws: np.ndarray | None, plan: BatchPlan, transform: Transform
    ) -> torch.Tensor:
        image = rearrange(self.images[index], "h w c -> c h w")
        if draws is None:
            return _normalise(image, transform).to(transform.dtype)
        crop_y, crop_x, flip, cutout_y, cutout_x = draws[:5].tolist()
        image = _apply_crop_and_flip(image, crop_y, crop_x, flip, transform)
        if transform.trivial_augment:
            image = apply_trivial_augment(image, draws[-2:])
        image = _normalise(image, transform)
        image = _apply_jitter(image, draws, transform)
        image = _apply_cutout(image, cutout_y, cutout_x, transform.cutout, transform)
        return image.to(transform.dtype)


@dataclass(frozen=True)
class FileSource:
    """Images in files, read with Pillow."""

    files: FileSet

    def __call__(
        self, index: int, draws: np.ndarray | None, plan: BatchPlan, transform: Transform
    ) -> torch.Tensor:
        with images_of_any_size():
            if draws is None or plan.image_size is None:
                centre = _channels_first(self.files.read_centre(index))
                return _normalise(centre, transform).to(transform.dtype)
            image = _channels_first(self.files.read_crop(index, draws[:4], plan.image_size))
        flip, cutout_y, cutout_x = draws[4:7].tolist()
        if flip:
            image = F.horizontal_flip(image)
        if transform.trivial_augment:
            image = apply_trivial_augment(image, draws[-2:])
        side = cutout_side(transform.cutout, plan.image_size, self.files.size)
        image = _apply_cutout(_normalise(image, transform), cutout_y, cutout_x, side, transform)
        return image.to(transform.dtype)


def _channels_first(image: np.ndarray) -> torch.Tensor:
    return rearrange(torch.from_numpy(image.copy()), "h w c -> c h w")


def _end_with_trainer(worker: int) -> None:
    """Make a worker independent of signals to the trainer, but end it when the trainer's process ends.

    The worker gets a process group of its own, so that a signal to the trainer's group reaches the trainer
    only: it saves, and then ends its workers. If the trainer was killed, a thread ends the worker. torch's
    own check of a worker's parent does not work here: the parent is the fork server, which lives as long as
    there are workers.
    """
    os.setpgrp()
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def exit_after_trainer() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=exit_after_trainer, name="exit_after_trainer", daemon=True).start()


class _Batches(IterableDataset):
    """The endless stream of batches from (epoch, step). Of W workers, each makes every W-th batch."""

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
        """Load a batch. Return the error if a file cannot be read.

        torch would put the worker's traceback before the message of an error that is raised here.
        """
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
    """Loads the same draws and the same pixels as every other loader, with independent code.

    Args:
        source: of the images.
        labels: (N,) int64 in host memory.
        sampler, transform, device: as for `DaliArrayLoader`.
        num_workers: processes that load; 0: this process loads.
        prefetch: batches prepared in advance by each worker.
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
            context.set_forkserver_preload([__name__])  # the import takes seconds: do it once, not per worker
        self._batches = iter(
            DataLoader(
                _Batches(*self._arguments, epoch, step),
                batch_size=None,
                num_workers=self._num_workers,
                prefetch_factor=self._prefetch if self._num_workers else None,
                pin_memory=self._device.type == "cuda",
                worker_init_fn=_end_with_trainer,
                multiprocessing_context=context,
                # not torch's default generator, which dropout uses too: a resumed run restarts its loader
                generator=torch.Generator(),
            )
        )

    def _next(self) -> Batch:
        loaded = next(self._batches)
        if isinstance(loaded, TrainingError):
            raise loaded
        images, labels, valid, indices = (tensor.to(self._device, non_blocking=True) for tensor in loaded)
        return Batch(images.contiguous(memory_format=self._memory_format), labels, valid, indices)
