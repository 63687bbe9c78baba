"""Counts with more views of the least sure images of a loader, for `evaluate`: the second pass over it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch

from pipeline.config import Views
from pipeline.data.batch import Loader, ResidentLoader
from pipeline.distributed.processes import sum_over_processes
from pipeline.errors import TrainingError
from pipeline.training.views import Forward, least_sure, mean_logits


@dataclass
class SeenOnce:
    """The result of the first pass over this process's batches, on the device.

    Attributes:
        totals: (4,) float64: correct from one view, samples, loss, and correct with the views if all images
            get them.
        confidences: (B,) float32 of each batch, infinity for padding; empty if all images get the same views.
        right: likewise (B,) bool, correct from one view; False for padding.
        indices: likewise (B,) int64, sample ids.
        logits: likewise (B, K) float32, for `count_on_device`.
    """

    totals: torch.Tensor
    confidences: list[torch.Tensor] = field(default_factory=list)
    right: list[torch.Tensor] = field(default_factory=list)
    indices: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


def is_alone_with_images(loader: Loader) -> TypeGuard[ResidentLoader]:
    """True if `count_on_device` can be used: on one process, with a loader of images in device memory."""
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return isinstance(loader, ResidentLoader) and not several


def count_on_device(
    forward: Forward, loader: ResidentLoader, views: Views, seen_once: SeenOnce
) -> torch.Tensor:
    """Count as `count_with_least_sure` does, but never wait for the device.

    The least sure images are cut into as few batches as their number allows, all of one size, so that few
    images are computed for nothing.

    Returns:
        Device scalar, int64.
    """
    count, largest = views.count(loader.num_samples), len(seen_once.indices[0])
    order = least_sure(torch.cat(seen_once.confidences), count)
    samples, logits = torch.cat(seen_once.indices)[order], torch.cat(seen_once.logits)[order]
    right = torch.cat(seen_once.right).index_fill(0, order, False).sum()
    size = -(-count // -(-count // largest))
    for first in range(0, count, size):
        start = min(first, count - size)  # the last batch overlaps the one before it
        batch = loader.show(samples[start : start + size])
        votes = mean_logits(forward, batch.images, views.kind, logits[start : start + size]).argmax(1)
        right += (votes == batch.labels)[first - start :].sum()
    return right


def count_with_least_sure(forward: Forward, loader: Loader, views: Views, seen_once: SeenOnce) -> int:
    """Count the correct predictions of all processes: with the views for the least sure images, from one view
    for the others.

    Raises:
        TrainingError: the loader gives other batches the second time.
    """
    count = views.count(loader.num_samples)
    chosen = _choose(seen_once.confidences, count)
    kept = (torch.cat(seen_once.right) & ~chosen).sum()
    totals = torch.stack([kept, torch.zeros_like(kept), torch.zeros_like(kept)])  # kept, right, found
    for part in _collect(loader, chosen, seen_once.indices):
        votes = mean_logits(forward, part.images, views.kind).argmax(1)
        totals[1] += (votes == part.labels)[: part.filled].sum()
        totals[2] += part.same[: part.filled].sum()
    kept_right, seen_right, found = sum_over_processes(totals).tolist()
    if found != count:
        raise TrainingError(
            f"evaluation.views_share={views.share:g}: the loader gave {count - found} of {count} images at "
            "another place the second time; let it repeat the order of its batches, or set "
            "evaluation.views_share=1"
        )
    return kept_right + seen_right


def _choose(confidences: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """Return a mask over this process's samples: True for the COUNT least sure ones of all processes.

    Of samples that are equally sure, those with lower ids are taken, on any number of processes.
    """
    mine = torch.cat(list(confidences))
    rank, world_size = 0, 1
    if torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    all_of_them = mine.new_zeros(world_size, len(mine))
    all_of_them[rank] = mine
    sum_over_processes(all_of_them)
    # in the order of the samples: batch after batch, and in each the parts of the processes
    steps = len(confidences) if len({len(part) for part in confidences}) == 1 else 1
    in_order = all_of_them.view(world_size, steps, -1).transpose(0, 1).flatten()
    chosen = torch.zeros_like(in_order, dtype=torch.bool)
    chosen.index_fill_(0, least_sure(in_order, count), True)
    return chosen.view(steps, world_size, -1)[:, rank].flatten()


@dataclass(frozen=True)
class _Part:
    """A batch of samples that were collected from several batches.

    Attributes:
        images, labels: as in `Batch`.
        same: (B,) bool, True for a sample at the place where it was the first time.
        filled: the number of samples; the rows behind them are padding.
    """

    images: torch.Tensor
    labels: torch.Tensor
    same: torch.Tensor
    filled: int


def _collect(loader: Loader, chosen: torch.Tensor, indices: Sequence[torch.Tensor]) -> Iterator[_Part]:
    """Read the data set again, and yield the chosen samples in full batches; only the last has padding.

    All batches are in the same memory: use one up before the next is asked for.

    Args:
        loader: as the first time.
        chosen: mask over this process's samples.
        indices: sample ids of each batch, as they were the first time.
    """
    sizes = [len(part) for part in indices]
    counts = torch.stack([part.sum() for part in chosen.split(sizes)]).tolist()  # waits for the device
    positions = torch.cat([torch.arange(size, device=chosen.device) for size in sizes])
    buffers: list[torch.Tensor] = []
    filled = 0
    for before, rows, batch in zip(indices, positions[chosen].split(counts), loader, strict=False):
        tensors = (batch.images, batch.labels, batch.indices == before)
        buffers = buffers or [torch.zeros_like(tensor) for tensor in tensors]
        images, labels, same = buffers
        while len(rows):
            taken = rows[: len(images) - filled]
            for buffer, tensor in zip(buffers, tensors, strict=True):
                buffer[filled : filled + len(taken)] = tensor[taken]
            rows, filled = rows[len(taken) :], filled + len(taken)
            if filled == len(images):
                yield _Part(images, labels, same, filled)
                filled = 0
    if filled:
        images, labels, same = buffers
        yield _Part(images, labels, same, filled)
