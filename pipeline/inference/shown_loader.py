"""Shows on a terminal how far the evaluation of a command is."""

from collections.abc import Iterator

from pipeline.data import Batch, Loader
from pipeline.run.progress import shown


class ShownLoader:
    """A loader with a progress bar for each epoch, on a terminal.

    Args:
        loader: the batches; the attributes are those of `Loader`.
        text: names the work.
    """

    def __init__(self, loader: Loader, text: str):
        self.steps_per_epoch, self.num_samples = loader.steps_per_epoch, loader.num_samples
        self._loader, self._text = loader, text

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield batches without end, as the loader does."""
        return self._loader.batches_from(step)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch, and show how far it is."""
        return shown(self._loader, self._text, self.steps_per_epoch)
