"""Shows how far a loader is, and stays the loader that it is."""

from collections.abc import Iterator

import pytest
import torch

from pipeline.data import Batch
from pipeline.data.batch import ResidentLoader
from pipeline.inference.shown_loader import show_loader


class Streamed:
    """Yields two batches of ids."""

    steps_per_epoch, num_samples = 2, 4

    def batches_from(self, step: int) -> Iterator[Batch]:
        while True:
            yield self.show(torch.arange(2) + 2 * (step % 2))
            step += 1

    def __iter__(self) -> Iterator[Batch]:
        yield from (self.show(torch.tensor(ids)) for ids in ([0, 1], [2, 3]))

    def show(self, samples: torch.Tensor) -> Batch:
        return Batch(torch.zeros(len(samples), 3, 8, 8), samples, samples >= 0, samples)


def test_the_batches_are_those_of_the_loader():
    loader = show_loader(Streamed(), "images")
    assert (loader.steps_per_epoch, loader.num_samples) == (2, 4)
    assert [batch.indices.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert next(loader.batches_from(1)).indices.tolist() == [2, 3]


def test_a_loader_of_images_in_memory_stays_one():
    """Evaluations of a part of the views then count without waiting for the device, as in the run."""
    loader = show_loader(Streamed(), "images")
    assert isinstance(loader, ResidentLoader)
    assert loader.show(torch.tensor([3])).indices.tolist() == [3]


def test_another_loader_does_not_become_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(Streamed, "show")
    assert not isinstance(show_loader(Streamed(), "images"), ResidentLoader)
