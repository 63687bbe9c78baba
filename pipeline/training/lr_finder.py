"""The learning-rate range test: `python -m pipeline lr-find CONFIG [key=value…]`."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.config import Config
from pipeline.data import Loader, load_splits
from pipeline.distributed.processes import connect
from pipeline.errors import UserError
from pipeline.training.build import captures, set_backends
from pipeline.training.state import TrainState
from pipeline.training.step import Step
from pipeline.training.trainer import Trainer, side_stream

RULE = "where the smoothed loss stops falling (Smith 2017, arXiv:1506.01186, section 3.3)"
_WINDOW, _WORSE = 5, 1.25  # the test ends where so many losses are on average so many times the first ones
_LOOK_EVERY = 5  # steps between two looks at the losses, for which the host waits
_SMOOTHING = 0.04  # standard deviation of the smoothing, as a share of the steps


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
        rates: (N,) float64, the learning rate of each step, rising.
        losses: (N,) float64, the training loss of each step, finite.
        smoothed: (N,) float64, the same averaged with its neighbours on both sides (a Gaussian), so that nothing is moved along.
        diverged: the loss left the rails before the largest rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    diverged: bool

    @property
    def suggested(self) -> float | None:
        """The largest learning rate to train with: `RULE`. None where the loss never fell, or did not stop."""
        return float(self.rates[self.smoothed.argmin()]) if self.fell and not self.still_falls else None

    @property
    def fell(self) -> bool:
        return int(self.smoothed.argmin()) > 1

    @property
    def still_falls(self) -> bool:
        """Whether the smallest loss is that of the largest rate of a test that was not ended early: larger ones may be better."""
        return not self.diverged and int(self.smoothed.argmin()) == len(self.smoothed) - 1

    @property
    def steepest(self) -> float | None:
        """Where the smoothed loss falls fastest over the logarithm of the rate: a cautious choice (fastai's `steep`)."""
        if not self.fell:
            return None
        until = int(self.smoothed.argmin()) + 1
        return float(self.rates[np.gradient(self.smoothed[:until], np.log(self.rates[:until])).argmin()])


def smooth(losses: np.ndarray) -> np.ndarray:
    """(N,) → (N,): the weighted mean around each step, by a Gaussian whose width is a share of N; at the ends by what there is of it."""
    count = len(losses)
    distances = np.arange(1 - count, count)
    weights = np.exp(-0.5 * (distances / max(_SMOOTHING * count, 0.5)) ** 2)
    total, weight = (
        np.convolve(values, weights)[count - 1 : 2 * count - 1] for values in (losses, np.ones(count))
    )
    return total / weight


@contextmanager
def restored(state: TrainState) -> Iterator[None]:
    """Undo what is trained inside: weights and norm statistics, their moving average, optimizer, scaler, sums, counters,
    and torch's generators."""
    saved = copy.deepcopy(state.state_dict())
    models = [state.model, *([state.ema.model] if state.ema is not None else [])]
    weights = [copy.deepcopy(model.state_dict()) for model in models]
    rate = state.lr.clone()
    try:
        yield
    finally:
        for model, values in zip(models, weights, strict=True):
            model.load_state_dict(values)
        state.load_state_dict(saved)
        state.lr.copy_(rate)
        state.optimizer.zero_grad(set_to_none=True)


def range_test(
    config: Config,
    state: TrainState,
    loader: Loader,
    lowest: float = 1e-4,
    highest: float = 10.0,
    num_steps: int = 100,
    report: Callable[[int], None] = lambda step: None,
) -> RangeTest:
    """Train a few steps at rates that rise from step to step, and undo it all (Smith 2017, arXiv:1506.01186, section 3.3).

    The rate rises by one factor a step, which shows small and large rates alike. Precision, loss, augmentation, capture and all else are
    the config's. The test ends early where the loss is not finite, or where five losses in a row are on average a quarter above the
    first five. On one process.

    Args:
        config: the run's config.
        state: of the run; as before afterwards.
        loader: of the training images.
        lowest, highest: learning rates of the first and the last step.
        num_steps: steps of the test.
        report: called with the number of steps done.
    """
    assert 0 < lowest < highest and num_steps > 1
    first, factor = state.step, (highest / lowest) ** (1 / (num_steps - 1))
    pending: list[torch.Tensor] = []
    losses: list[float] = []
    with restored(state):
        step = Step(
            config,
            state,
            lambda number: lowest * factor ** (number - first),
            captures(config.compile, state.lr.device),
        )
        for number, batch in zip(range(1, num_steps + 1), loader.batches_from(first), strict=False):
            pending.append(step(batch).loss.clone())
            report(number)
            if number % _LOOK_EVERY == 0 or number == num_steps:
                losses += torch.stack(pending).tolist()
                pending.clear()
                if _end(losses) is not None:
                    break
    end = _end(losses)
    kept = np.array(losses[:end], np.float64)
    return RangeTest(lowest * factor ** np.arange(len(kept)), kept, smooth(kept), end is not None)


def _end(losses: list[float]) -> int | None:
    """How many losses there are until they leave the rails, those that do so left out; None where they do not."""
    start = sum(losses[:_WINDOW]) / _WINDOW
    for number, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            return number - 1
        if number >= 2 * _WINDOW and sum(losses[number - _WINDOW : number]) / _WINDOW > _WORSE * start:
            return number - _WINDOW
    return None


def lr_find(config: Config, lowest: float, highest: float, num_steps: int) -> RangeTest:
    """Run the test from fresh weights on the config's data, with a progress bar on a terminal.

    Raises:
        UserError: the range is empty, or a single step could not be done at a finite loss.
    """
    if not 0 < lowest < highest < math.inf:
        raise UserError(
            f"--min {lowest:g} and --max {highest:g}: the rate rises from a positive one to a larger, finite one"
        )
    set_backends(config)
    processes = connect(config)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    console = Console()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with side_stream(processes.device), bar as progress:
        trainer = Trainer.build(config, load_splits(config.data, config.seed), processes)
        task = progress.add_task("learning rates", total=num_steps)
        found = range_test(
            config,
            trainer.state,
            trainer.loaders.train,
            lowest,
            highest,
            num_steps,
            lambda step: progress.update(task, completed=step),
        )
    if not len(found.losses):
        raise UserError(f"--min {lowest:g}: the very first loss is not finite; use precision.mode=bf16")
    return found
