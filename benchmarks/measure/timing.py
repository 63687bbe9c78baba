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
    workload.run(_untimed_steps(workload, steps, stopwatch))
    step_s = stopwatch.seconds(lambda: workload.run(steps)) / steps
    workload.finish(step_s)
    return step_s


def _untimed_steps(workload: Workload, steps: int, stopwatch: Stopwatch) -> int:
    """Return the number of steps that come before a window of so many."""
    return max(workload.lead_in, steps // 2 if stopwatch.device.type == "cuda" else 0)


def steps_lasting(workload: Workload, seconds: float, stopwatch: Stopwatch, whole: int = 1) -> int:
    """Return the steps of a workload that last about this long, a multiple of `whole` (such as an epoch)."""
    time_window(workload, 1, stopwatch)
    guess = time_window(workload, max(workload.lead_in, 8), stopwatch)  # a loader may deliver in bursts
    return whole * max(math.ceil(seconds / guess / whole), 1)


class StoppedEarly(KeyboardInterrupt):
    """Ctrl-C came before every workload had a window.

    Attributes:
        timings: of those that have one.
    """

    def __init__(self, timings: Sequence[Timing]):
        super().__init__()
        self.timings = timings


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
        StoppedEarly: Ctrl-C came before the first round was complete.
    """
    counts = [steps] * len(workloads) if isinstance(steps, int) else list(steps)
    rounds = _Rounds(workloads, counts, Stopwatch(device), progress)
    try:
        rounds.time(windows)
    except KeyboardInterrupt:
        if not rounds.num_complete:
            raise StoppedEarly(rounds.timings(1)) from None
    for workload in workloads:
        workload.check()
    return rounds.timings(rounds.num_complete)


class _Rounds:
    """Times the rounds of `time_interleaved`, whose arguments these are."""

    def __init__(
        self,
        workloads: Sequence[Workload],
        counts: Sequence[int],
        stopwatch: Stopwatch,
        progress: Callable[[str], None],
    ):
        self._workloads, self._counts = workloads, counts
        self._stopwatch, self._progress = stopwatch, progress
        self._step_s: list[list[float]] = [[] for _ in workloads]
        self._window_s = [0.0] * len(workloads)  # the last one of each, or an estimate

    @property
    def num_complete(self) -> int:
        return len(self._step_s[-1])

    def timings(self, rounds: int) -> list[Timing]:
        """Return the first windows of each workload that has so many."""
        return [
            Timing(workload.name, workload.images_per_step, tuple(seconds[:rounds]))
            for workload, seconds in zip(self._workloads, self._step_s, strict=True)
            if len(seconds) >= rounds
        ]

    def time(self, windows: int) -> None:
        for index, workload in enumerate(self._workloads):
            self._progress(f"warming up, {index + 1} of {len(self._workloads)}: {workload.name}")
            count = self._counts[index]
            steps = count + _untimed_steps(workload, count, self._stopwatch)
            self._window_s[index] = steps * time_window(workload, 1, self._stopwatch)
        for number in range(1, windows + 1):
            for index, (workload, count) in enumerate(zip(self._workloads, self._counts, strict=True)):
                left = describe_left(self._seconds_left(windows - number, index))
                self._progress(f"round {number} of {windows}: {workload.name}{left}")
                began = time.perf_counter()
                step_s = time_window(workload, count, self._stopwatch)
                self._step_s[index].append(step_s)
                self._window_s[index] = time.perf_counter() - began

    def _seconds_left(self, rounds: int, index: int) -> float:
        """Return the seconds that whole rounds take, and the present one from a workload on."""
        return rounds * sum(self._window_s) + sum(self._window_s[index:])


def describe_left(seconds: float | None) -> str:
    """Return the time left as the end of a line; nothing if it is not known.

    >>> describe_left(81.4), describe_left(None)
    (', left 1:21', '')
    """
    return "" if seconds is None else f", left {int(seconds // 60)}:{int(seconds % 60):02d}"


def left_at_this_pace(began: float, done: int, total: int) -> str:
    """Return the time left as the end of a line, if each part takes as long as those before; nothing at the
    first.

    Args:
        began: in seconds of `time.perf_counter`.
        done: parts that have ended.
        total: number of parts.
    """
    return describe_left((time.perf_counter() - began) / done * (total - done) if done else None)
