"""Times workloads in turn.

Each workload gets a window in every round, so that a drift of the machine affects all of them alike.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.publish.records import Baseline, Spread


class Workload(ABC):
    """A thing to time, which can be run for a number of steps.

    Attributes:
        name: of the variant.
        images_per_step: over all processes.
        lead_in: untimed steps at the start of a window; they use up batches prepared ahead while others were
            timed.
    """

    def __init__(self, name: str, images_per_step: int, lead_in: int = 3):
        self.name = name
        self.images_per_step = images_per_step
        self.lead_in = lead_in

    def prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """Prepare for a window, before its lead-in."""

    @abstractmethod
    def run(self, steps: int) -> None:
        """Run this many steps; on a GPU, enqueue them on the current stream."""

    def finish(self, step_s: float) -> None:  # noqa: B027
        """Clean up after a window whose steps took this many seconds each; the device is idle."""

    def check(self) -> None:  # noqa: B027
        """Check the workload after all windows.

        Raises:
            TrainingError: the steps that were timed are not valid steps of training.
        """


@dataclass(frozen=True)
class Timing:
    """The windows of one workload.

    Attributes:
        step_s: seconds per step of each window, in the order of the rounds.
    """

    name: str
    images_per_step: int
    step_s: tuple[float, ...]

    @property
    def images_per_sec(self) -> Spread:
        return Spread.of([self.images_per_step / seconds for seconds in self.step_s])

    @property
    def step_ms(self) -> float:
        """Median."""
        return 1e3 * Spread.of(self.step_s).median

    def against(self, other: "Timing") -> Baseline:
        """Compare this throughput with another one, by the ratio of windows of the same round."""
        rate = self.images_per_step / other.images_per_step
        ratios = [rate * theirs / ours for ours, theirs in zip(self.step_s, other.step_s, strict=True)]
        median = other.images_per_sec.median
        return Baseline(variant=other.name, images_per_sec=median, ratio=Spread.of(ratios))


@dataclass(frozen=True)
class Stopwatch:
    """Times a region on one device, or on the slowest of several processes.

    On a GPU it uses events on the current stream. The first event is reached when the work enqueued before is
    done, so the time of the host counts if the host is slower. On the CPU it uses the host's clock.
    """

    device: torch.device

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Run the work, wait for it, and return its seconds."""
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            elapsed = begin.elapsed_time(end) / 1e3
        else:
            started = time.perf_counter()
            work()
            elapsed = time.perf_counter() - started
        return self._slowest(elapsed)

    def barrier(self) -> None:
        """Wait for the device, and for the other processes."""
        self.synchronize()
        self._slowest(0.0)

    def _slowest(self, seconds: float) -> float:
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return seconds
        value = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return float(value)


def time_window(workload: Workload, steps: int, stopwatch: Stopwatch) -> float:
    """Return the seconds per step of one window.

    On a GPU half as many untimed steps come first: the workload before may have left the GPU cooler or
    warmer, and its clock rate follows the temperature.
    """
    workload.prepare()
    stopwatch.barrier()
    workload.run(max(workload.lead_in, steps // 2 if stopwatch.device.type == "cuda" else 0))
    step_s = stopwatch.seconds(lambda: workload.run(steps)) / steps
    workload.finish(step_s)
    return step_s


def steps_lasting(workload: Workload, seconds: float, stopwatch: Stopwatch, whole: int = 1) -> int:
    """Return the steps of a workload that last about this long, a multiple of `whole` (such as an epoch)."""
    time_window(workload, 1, stopwatch)
    guess = time_window(workload, max(workload.lead_in, 8), stopwatch)  # a loader may deliver in bursts
    return whole * max(math.ceil(seconds / guess / whole), 1)


def time_interleaved(
    workloads: Sequence[Workload],
    windows: int,
    steps: int | Sequence[int],
    device: torch.device,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Time workloads in turn, window after window (A B C A B C …).

    A first round of one-step windows is not counted.

    Args:
        workloads: already compiled.
        windows: rounds.
        steps: of each window, the same for all workloads or one number for each.
        device: of the workloads.
        progress: called before each window with its description and the time left.

    Returns:
        One timing for each workload, in their order. If Ctrl-C comes after the first round, they hold the
        rounds that are complete.

    Raises:
        TrainingError: as of `Workload.check`.
        KeyboardInterrupt: Ctrl-C came before the first round was complete.
    """
    counts = [steps] * len(workloads) if isinstance(steps, int) else list(steps)
    step_s: list[list[float]] = [[] for _ in workloads]
    try:
        _time_rounds(workloads, windows, counts, step_s, Stopwatch(device), progress)
    except KeyboardInterrupt:
        if not step_s[-1]:
            raise
    for workload in workloads:
        workload.check()
    complete = len(step_s[-1])
    return [
        Timing(workload.name, workload.images_per_step, tuple(seconds[:complete]))
        for workload, seconds in zip(workloads, step_s, strict=True)
    ]


def _time_rounds(
    workloads: Sequence[Workload],
    windows: int,
    counts: Sequence[int],
    step_s: Sequence[list[float]],
    stopwatch: Stopwatch,
    progress: Callable[[str], None],
) -> None:
    """Time the rounds, and add the seconds per step of each window to the list of its workload."""
    for number, workload in enumerate(workloads, 1):
        progress(f"warming up, {number} of {len(workloads)}: {workload.name}")
        time_window(workload, 1, stopwatch)
    began, done, total = time.perf_counter(), 0, windows * len(workloads)
    for number in range(1, windows + 1):
        for workload, count, seconds in zip(workloads, counts, step_s, strict=True):
            left = (time.perf_counter() - began) / done * (total - done) if done else None
            progress(f"round {number} of {windows}: {workload.name}{describe_left(left)}")
            seconds.append(time_window(workload, count, stopwatch))
            done += 1


def describe_left(seconds: float | None) -> str:
    """Return the time left as the end of a line; nothing if it is not known.

    >>> describe_left(81.4), describe_left(None)
    (', left 1:21', '')
    """
    return "" if seconds is None else f", left {int(seconds // 60)}:{int(seconds % 60):02d}"
