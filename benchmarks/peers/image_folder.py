"""Loads a folder with torchvision's ImageFolder and torch's DataLoader: the baseline of streamed folders."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pipeline.config import Config, FolderData
from pipeline.data import Batch, FileSet, Splits


class ImageFolderLoader:
    """Crops, flips and normalises images in worker processes, then moves them to the device, as usual.

    The crops are random resized ones; the images are shuffled and pinned.
    The workers normalise the images in float32, as usual; on the device the images get the type and layout of
    the other loaders.

    Args:
        config: `data.num_threads` is the number of workers, `data.prefetch` their prefetch factor.
        splits: a streamed folder in class folders.
        device: of the batches.
    """

    def __init__(self, config: Config, splits: Splits, device: torch.device):
        assert isinstance(splits.train, FileSet), "this loader is for streamed folders"
        data, augment = config.data, config.augment
        assert isinstance(data, FolderData), "files come from a folder"
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(splits.image_size, augment.crop_scale, augment.crop_ratio),
                *([v2.RandomHorizontalFlip()] if augment.flip else []),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(splits.mean), list(splits.std)),
            ]
        )
        self._loader = DataLoader(
            ImageFolder(str(splits.train.root / data.train_folder), transform),
            data.batch_size,
            shuffle=True,
            num_workers=data.num_threads,
            prefetch_factor=data.prefetch,
            pin_memory=device.type == "cuda",
            drop_last=True,
            persistent_workers=True,
            multiprocessing_context=multiprocessing.get_context("forkserver"),
        )
        self._device = device
        self._dtype = torch.float32 if config.precision.mode == "fp32" else torch.float16
        self._layout: Any = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
        self.steps_per_epoch, self.num_samples = len(self._loader), len(splits.train)

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield batches without end; torch's DataLoader begins at no other step than 0."""
        assert step == 0, step
        while True:
            yield from self

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self._loader:
            moved = images.to(self._device, non_blocking=True).to(self._dtype, memory_format=self._layout)
            labels = labels.to(self._device, non_blocking=True)
            yield Batch(moved, labels, torch.ones_like(labels, dtype=torch.bool), torch.zeros_like(labels))
