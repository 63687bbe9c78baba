"""Builds the workloads that benchmarks time, a loader or the training step, from the builders of training."""

import math
import time
from collections.abc import Callable
from itertools import islice

import torch

from benchmarks.measure.timing import Workload
from benchmarks.publish.records import Spread
from pipeline.config import Config, ScaledPrecision
from pipeline.data import Loader, Splits, build_loaders
from pipeline.data.loaders.reference import ReferenceLoader
from pipeline.distributed.processes import Processes
from pipeline.errors import TrainingError
from pipeline.finalize import peak_memory_bytes
from pipeline.training.build import set_backends
from pipeline.training.clock import Clock
from pipeline.training.trainer import Trainer

_IMAGES_AHEAD = 8192  # that a loader may hold ready, beside the batches that it is asked to prefetch
_LONGEST_PAUSE_S = 3.0


def batches_ahead(config: Config) -> int:
    """Return an upper bound of the batches that a loader holds ready; a window's lead-in must use them up."""
    data = config.data
    if data.loader == "synthetic":
        return 1
    if data.loader == "reference":
        return data.num_threads * data.prefetch + 2 if data.num_threads > 1 else 1
    if data.loader == "dali" and config.probably_streamed:  # it decodes batch by batch, in two stages
        return 2 * data.prefetch + 2
    return data.prefetch + 2 + math.ceil(_IMAGES_AHEAD / data.batch_size)


def build_train_loader(config: Config, splits: Splits, processes: Processes) -> Loader:
    """Return the training loader of `data.loader`."""
    return build_loaders(config, splits, processes.device, processes.shard).train


class LoaderWorkload(Workload):
    """A loader alone: every batch is loaded onto the device, and dropped."""

    def __init__(self, name: str, loader: Loader, batch_size: int, lead_in: int):
        super().__init__(name, batch_size, lead_in)
        self._batches = loader.batches_from(0)

    def run(self, steps: int) -> None:
        for _ in islice(self._batches, steps):
            pass


class Rig:
    """A model, its optimizer and the step, warmed up; loaders take turns to feed it.

    Args:
        config: of the step. Its loader is not used: warming up takes synthetic images.
        splits: the data set: the number of classes, the size of the images and the length of an epoch.
        processes: this process and the others.
        build: builds the trainer, from config, data set and processes; default: as for training.

    Attributes:
        compile_s: seconds until the end of compiling, choosing algorithms and capturing.
        peak_memory_bytes: torch's peak while building and warming up, less the memory held before (on the
            CPU: the peak of the process so far).
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        processes: Processes,
        build: Callable[[Config, Splits, Processes], Trainer] = Trainer.build,
    ):
        self.config, self.splits, self.processes = config, splits, processes
        device = processes.device
        on_gpu = device.type == "cuda"
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        set_backends(config)
        trainer = build(self._synthetic_config(), splits, processes)
        self.state, self.step = trainer.state, trainer.step
        self.compile_s = self._warm_up()
        self.peak_memory_bytes = peak_memory_bytes(device) - before
        self._recompilations = self.step.recompilations

    def synthetic(self) -> Loader:
        """Return a loader that gives one fixed batch, in the format of the other loaders."""
        return build_train_loader(self._synthetic_config(), self.splits, self.processes)

    def _synthetic_config(self) -> Config:
        data = self.config.data.model_copy(update={"loader": "synthetic"})
        return self.config.model_copy(update={"data": data})

    def _warm_up(self) -> float:
        batches = self.synthetic().batches_from(0)
        started = time.perf_counter()
        while True:
            self.step(next(batches))
            if self.step.settled:
                break
        self.synchronize()
        return time.perf_counter() - started

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize(self.processes.device)

    def mark(self) -> None:
        """Note that all compiling so far was warm-up."""
        self._recompilations = self.step.recompilations

    def check(self) -> None:
        """Check the steps that were timed.

        Raises:
            TrainingError: the step was compiled again after `mark`, or its loss is not finite.
        """
        extra = self.step.recompilations - self._recompilations
        if extra:
            raise TrainingError(
                f"the step was compiled {extra} more times after warm-up: shapes or types change between "
                "batches"
            )
        loss, *_, skipped_in_a_row = self.state.totals.values.tolist()
        precision = self.config.precision
        overflows = (
            isinstance(precision, ScaledPrecision) and skipped_in_a_row >= precision.max_consecutive_skips
        )
        if not math.isfinite(loss) or overflows:
            raise TrainingError(
                "the timed step computes NaN or overflows at every step, so its speed is not that of "
                "training; lower optimizer.lr, or use precision.mode=bf16"
            )


class StepWorkload(Workload):
    """The step on the batches of a loader, as in the training loop: the host runs at most a few steps ahead.

    Attributes:
        rig: model and step.
        data_wait: of each window, the fraction of the time in which the device waited for data.
    """

    def __init__(self, name: str, rig: Rig, loader: Loader, lead_in: int):
        super().__init__(name, rig.config.data.batch_size, lead_in)
        self.rig = rig
        self.data_wait: list[float] = []
        self._batches = loader.batches_from(0)
        self._clock = Clock(rig.processes.device)
        self._refills = isinstance(loader, ReferenceLoader) and lead_in > 1

    def prepare(self) -> None:
        set_backends(self.rig.config)  # switches of the whole process: another workload may have changed them
        self._clock.open()

    def run(self, steps: int) -> None:
        for batch in self._clock.timed(islice(self._batches, steps)):
            self.rig.step(batch)
            self._clock.step(self.images_per_step)

    def finish(self, step_s: float) -> None:
        window = self._clock.close()
        if (
            not self.data_wait
        ):  # this was the round that is not counted: a recompilation from here on is a fault
            self.rig.mark()
        if window is not None:
            self.data_wait.append(window.data_wait_fraction)
        if self._refills:  # workers fill their queues now, and not in the window of another workload
            time.sleep(min(self.lead_in * step_s, _LONGEST_PAUSE_S))

    def check(self) -> None:
        self.rig.check()

    @property
    def data_wait_fraction(self) -> float:
        """Median over the windows that count."""
        return Spread.of(self.data_wait[1:] or self.data_wait).median

    def host_ms(self, steps: int = 3) -> float:
        """Return the milliseconds that the host takes to enqueue a step; the device is idle at first."""
        self.rig.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            self.rig.step(next(self._batches))
        elapsed = time.perf_counter() - started
        self.rig.synchronize()
        return 1e3 * elapsed / steps
