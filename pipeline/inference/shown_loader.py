"""Shows on a terminal how far the evaluation of a command is."""

from collections.abc import Iterator

import torch

from pipeline.data import Batch, Loader
from pipeline.data.batch import ResidentLoader
from pipeline.run.progress import shown


def show_loader(loader: Loader, text: str) -> Loader:
    """Return the loader with a progress bar for each epoch, on a terminal.

    Args:
        loader: the batches. If it is a `ResidentLoader`, the result is one too.
        text: names the work.
    """
    return _ShownResident(loader, text) if isinstance(loader, ResidentLoader) else _Shown(loader, text)


class _Shown:
    """A loader with a progress bar; the attributes are those of `Loader`."""

    def __init__(self, loader: Loader, text: str):
        self.steps_per_epoch, self.num_samples = loader.steps_per_epoch, loader.num_samples
        self._loader, self._text = loader, text

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield batches without end, as the loader does."""
        return self._loader.batches_from(step)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch, and show how far it is."""
        return shown(self._loader, self._text, self.steps_per_epoch)


class _ShownResident(_Shown):
    """A loader of images in device memory with a progress bar."""

    def __init__(self, loader: ResidentLoader, text: str):
        super().__init__(loader, text)
        self._resident = loader

    def show(self, samples: torch.Tensor) -> Batch:
        """Return chosen samples, as the loader does."""
        return self._resident.show(samples)
