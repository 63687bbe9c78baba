"""Runs the learning-rate range test: `python -m pipeline lr-find CONFIG [key=value…]`."""

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
from pipeline.errors import Stopped, UserError
from pipeline.optim.parts import partition
from pipeline.process.interrupt import keep_results
from pipeline.process.other_programs import OtherPrograms
from pipeline.training.build import captures, set_backends
from pipeline.training.cpu_threads import set_threads, threads_restored
from pipeline.training.state import TrainState
from pipeline.training.step import Step
from pipeline.training.trainer import Trainer, side_stream

RULE = "where the smoothed loss stops falling (Smith 2017, arXiv:1506.01186, section 3.3)"
_WINDOW = 5  # the test ends if the mean of so many losses …
_WORSE = 1.25  # … is so many times the mean of the first losses
_CHECK_EVERY = 5  # steps between two checks of the losses, for which the host waits
_SMOOTHING = 0.04  # standard deviation of the smoothing, as a fraction of the number of steps


@dataclass(frozen=True)
class RangeTest:
    """Holds the result of a range test.

    Attributes:
        rates: (N,) float64, the learning rate of each step, rising.
        losses: (N,) float64, the training loss of each step, finite.
        smoothed: (N,) float64, the losses smoothed by a symmetric Gaussian, which does not delay them.
        diverged: True if the loss diverged before the largest rate.
        stopped: True if Ctrl-C came before the largest rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    diverged: bool
    stopped: bool = False

    @property
    def suggested(self) -> float | None:
        """The largest learning rate to train with, by `RULE`. None if the loss never fell, or only fell."""
        found = self.fell and not self.still_falls and not self.stopped
        return float(self.rates[self.smoothed.argmin()]) if found else None

    @property
    def fell(self) -> bool:
        """True if the loss fell at all."""
        return int(self.smoothed.argmin()) > 1

    @property
    def still_falls(self) -> bool:
        """True if the largest rate gave the smallest loss, and the test did not end early.

        Larger rates may then be better.
        """
        return not self.diverged and int(self.smoothed.argmin()) == len(self.smoothed) - 1

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest over log(rate); cautious, as fastai's `steep`."""
        if not self.fell:
            return None
        until = int(self.smoothed.argmin()) + 1
        return float(self.rates[np.gradient(self.smoothed[:until], np.log(self.rates[:until])).argmin()])


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return the mean around each step, weighted by a Gaussian: (N,) → (N,).

    The width of the Gaussian is a fraction of N. At the ends its weights are normalised.
    """
    count = len(losses)
    distances = np.arange(1 - count, count)
    weights = np.exp(-0.5 * (distances / max(_SMOOTHING * count, 0.5)) ** 2)
    total, weight = (
        np.convolve(values, weights)[count - 1 : 2 * count - 1] for values in (losses, np.ones(count))
    )
    return total / weight


@contextmanager
def restored(state: TrainState) -> Iterator[None]:
    """Undo the training inside the context.

    This restores weights and norm statistics, their moving average, optimizer, scaler, sums, counters, and
    torch's random number generators.
    """
    saved = copy.deepcopy(state.state_dict())
    models = [state.model, *([state.ema.model] if state.ema is not None else [])]
    weights = [copy.deepcopy(model.state_dict()) for model in models]
    rates = [group["lr"].clone() for group in state.optimizer.param_groups]
    try:
        yield
    finally:
        for model, values in zip(models, weights, strict=True):
            model.load_state_dict(values)
        state.load_state_dict(saved)
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"].copy_(rate)
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
    """Train a few steps at rising learning rates, and undo it (Smith 2017, arXiv:1506.01186, section 3.3).

    The rate rises by the same factor at each step, so small and large rates get as many steps. Precision,
    loss, augmentation, capture and the rest are those of the config. The test ends early if the loss is not
    finite, or if the mean of five losses in a row is a quarter above that of the first five. Runs on one
    process.

    Args:
        config: the run's config.
        state: of the run; unchanged afterwards.
        loader: of the training images.
        lowest, highest: learning rates of the first and the last step.
        num_steps: steps of the test.
        report: called with the number of steps done.

    Raises:
        Stopped: Ctrl-C; its `partial` is the result so far.
    """
    assert 0 < lowest < highest and num_steps > 1
    first, factor = state.step, (highest / lowest) ** (1 / (num_steps - 1))
    capture = captures(config.compile, state.lr.device)
    losses: list[float] = []

    def result(*, stopped: bool = False) -> RangeTest:
        count = _count_before_divergence(losses)
        valid = np.array(losses[:count], np.float64)
        rates = lowest * factor ** np.arange(len(valid))
        return RangeTest(rates, valid, smooth(valid), count is not None, stopped)

    try:
        with restored(state):
            ratios = [part.lr_ratio for part in partition(config.optimizer, state.model)]

            def rates_at(number: int) -> list[float]:
                return [ratio * lowest * factor ** (number - first) for ratio in ratios]

            step = Step(config, state, rates_at, capture)
            for taken in _losses(step, loader, first, num_steps, report):
                losses += taken
                keep_results()
                if _count_before_divergence(losses) is not None:
                    break
    except KeyboardInterrupt:
        if not losses:
            raise
        raise Stopped(result(stopped=True)) from None
    return result()


def _losses(
    step: Step, loader: Loader, first: int, num_steps: int, report: Callable[[int], None]
) -> Iterator[list[float]]:
    """Take steps from the first one on, and yield the losses of a few at a time; the other arguments are
    those of `range_test`."""
    pending: list[torch.Tensor] = []
    for number, batch in zip(range(1, num_steps + 1), loader.batches_from(first), strict=False):
        pending.append(step(batch).loss.clone())
        report(number)
        if number % _CHECK_EVERY == 0 or number == num_steps:
            yield torch.stack(pending).tolist()
            pending.clear()


def _count_before_divergence(losses: list[float]) -> int | None:
    """Return the number of losses before the loss diverges; None if it does not."""
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
        UserError: the range is empty, or not even the first loss is finite.
        Stopped: as of `range_test`.
    """
    if not 0 < lowest < highest < math.inf:
        raise UserError(
            f"--min {lowest:g} and --max {highest:g}: give a positive learning rate and a larger, finite one"
        )
    others = OtherPrograms()
    set_backends(config)
    processes = connect(config)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    console = Console()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with side_stream(processes.device), threads_restored(), bar as progress:
        splits = load_splits(config.data, config.seed)
        threads = set_threads(processes, others)
        if threads is not None and threads.reason:
            console.print(str(threads), markup=False, soft_wrap=True)
        trainer = Trainer.build(config, splits, processes)
        task = progress.add_task("learning rates", total=num_steps)

        def report(step: int) -> None:
            progress.update(task, completed=step)

        result = range_test(config, trainer.state, trainer.loaders.train, lowest, highest, num_steps, report)
    if not len(result.losses):
        raise UserError(f"--min {lowest:g}: the first loss is not finite; use precision.mode=bf16")
    return result
