"""Compares batches, joins those of several processes, and watches what a process holds while it loads."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import psutil
import torch

from pipeline.data import Batch, Loader, Shard

NAMES = ("images", "labels", "valid", "indices")


def assert_same(actual: Batch, expected: Batch) -> None:
    """Assert that two batches are equal bit for bit."""
    for name in NAMES:
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


def assert_all_same(actual: Iterable[Batch], expected: Iterable[Batch]) -> None:
    """Assert that there are as many batches, and that they are equal bit for bit."""
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


def on_cpu(batch: Batch) -> Batch:
    return Batch(*(getattr(batch, name).cpu() for name in NAMES))


def by_ranks(world_size: int, make: Callable[[Shard], Loader]) -> Iterator[Batch]:
    """Join the shares of the ranks to global batches, for one epoch."""
    loaders = [make(Shard(rank, world_size)) for rank in range(world_size)]
    assert len({(loader.steps_per_epoch, loader.num_samples) for loader in loaders}) == 1
    for shares in zip(*loaders, strict=True):
        yield _join(shares)


def _join(shares: Sequence[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(share, name) for share in shares]) for name in NAMES))


def assert_holds_no_more(train: Loader, epochs: int, more_epochs: int) -> None:
    """Assert that memory, open files and threads of this process do not grow over many short epochs.

    They are read after twice EPOCHS, in which caches fill, and after MORE_EPOCHS.
    """
    process = psutil.Process()

    def read_after(count: int) -> tuple[float, int, int]:
        for _ in range(count):
            for _ in train:
                pass
        return process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()

    read_after(epochs)
    before, after = read_after(epochs), read_after(more_epochs)
    assert after[0] < before[0] + 16
    assert after[1] <= before[1] and after[2] <= before[2]  # a thread of an earlier test may end meanwhile
