"""Times windows of steady training, without warm-up, evaluation and saving."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from pipeline.data.batch import Batch
from pipeline.run.records import Throughput


@dataclass(frozen=True)
class Window:
    """The steps between two log points.

    Attributes:
        images_per_sec: over all processes.
        step_s: seconds per step.
        data_wait_fraction: fraction of the time that the device waited for data.
        steps: number of steps.
    """

    images_per_sec: float
    step_s: float
    data_wait_fraction: float
    steps: int

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Window":
        """Return a saved window; keys of another version are passed over."""
        return cls(**{field.name: saved[field.name] for field in fields(cls)})


class Clock:
    """Times windows of steps between log points, and the time that the device waits for data.

    A window counts only if every step of it ran after warm-up. On a GPU the wait is read from events: one
    after each step, and one at the moment at which the next batch is ready. On the CPU it is the host's time
    in the loader.

    Args:
        device: of the steps.
        saved: `state_dict` of an earlier run to continue.
        is_steady: True if warm-up is over; asked whenever a window opens. Default: always.
        max_ahead: steps that the host may enqueue before the device has done them, which bounds the memory of
            batches in flight; on the CPU there are none.

    Attributes:
        windows: the steady windows so far.
        train_s: seconds of all training steps, those of earlier processes of a continued run included.
        warmup_s: seconds of the windows that hold warm-up steps, in this process.
        first_step_at: end of the first step of this process, in seconds of `time.perf_counter`.
    """

    def __init__(
        self,
        device: torch.device,
        saved: dict[str, Any] | None = None,
        is_steady: Callable[[], bool] = lambda: True,
        max_ahead: int = 8,
    ):
        saved = saved or {}
        self._device, self._cuda, self._is_steady = device, device.type == "cuda", is_steady
        self.windows = [Window.of(values) for values in saved.get("windows", [])]
        self.train_s: float = saved.get("train_s", 0.0)
        self.warmup_s: float = 0.0
        self.first_step_at: float | None = None
        self.max_ahead = max_ahead if self._cuda else 0
        self._ahead: deque[torch.cuda.Event] = deque()
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._host_wait_s = 0.0
        self._opened_at = time.perf_counter()
        self._steps = self._images = 0
        self._steady = self._excluded = False

    # --- in the loop ----------------------------------------------------------------------------------------

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure the wait for each one."""
        iterator = iter(batches)
        while True:
            requested_at = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self._data_ready(requested_at)
            yield batch

    def _data_ready(self, requested_at: float) -> None:
        """Count the wait for a batch. On the device's stream the batch is ready when the work enqueued so far
        is done."""
        self._host_wait_s += time.perf_counter() - requested_at
        if self._cuda and self._ahead:
            self._waits.append((self._ahead[-1], self._record_event()))

    def step(self, num_images: int) -> None:
        """Count a step, which has just been enqueued, with NUM_IMAGES images over all processes."""
        self._steps += 1
        self._images += num_images
        if self.first_step_at is None:
            self._synchronize()
            self.first_step_at = time.perf_counter()
        if self._cuda:
            self._ahead.append(self._record_event())
            if len(self._ahead) > self.max_ahead:
                self._ahead.popleft().synchronize()

    @contextmanager
    def pause(self) -> Iterator[Window | None]:
        """Close the window, and open the next one at the end of the block: time in the block is not
        training."""
        yield self.close()
        self._synchronize()
        self.open()

    def exclude_window(self) -> None:
        """Keep the open window out of the throughput, since something else runs in it, such as profiling."""
        self._excluded = True

    def begin_warmup(self) -> None:
        """Begin a window of warm-up steps, as for images of another size."""
        self.close()
        self.open()
        self._steady = False

    @property
    def warming_up(self) -> bool:
        """True if the open window holds warm-up steps: it is closed as soon as warm-up is over."""
        return not self._steady

    # --- windows --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open a window now, while the device is idle."""
        self._steps = self._images = 0
        self._host_wait_s = 0.0
        self._waits.clear()
        self._ahead.clear()  # the time between two windows is no wait for data
        self._steady, self._excluded = self._is_steady(), False
        self._opened_at = time.perf_counter()

    def close(self) -> Window | None:
        """Close the window, after waiting for the device.

        Returns:
            The window; None if it has no step, holds warm-up steps, or is excluded.
        """
        self._synchronize()
        elapsed = time.perf_counter() - self._opened_at
        self.train_s += elapsed
        if not self._steady:
            self.warmup_s += elapsed
        if not self._steps or not self._steady or self._excluded:
            return None
        window = Window(
            images_per_sec=self._images / elapsed,
            step_s=elapsed / self._steps,
            data_wait_fraction=min(self._waited_s() / elapsed, 1.0),
            steps=self._steps,
        )
        self.windows.append(window)
        return window

    def _waited_s(self) -> float:
        if not self._cuda:
            return self._host_wait_s
        return sum(before.elapsed_time(after) for before, after in self._waits) / 1e3

    def _record_event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)

    # --- results --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"windows": [asdict(window) for window in self.windows], "train_s": self.train_s}

    def throughput(self) -> Throughput:
        """Images per second over the steady windows."""
        if not self.windows:
            return Throughput(median=None, p10=None, p90=None, n=0)
        median, p10, p90 = self._quantiles([window.images_per_sec for window in self.windows])
        return Throughput(median=median, p10=p10, p90=p90, n=len(self.windows))

    def step_ms(self) -> float | None:
        """Median milliseconds per step over the steady windows; None if there is none."""
        return 1e3 * self._quantiles([window.step_s for window in self.windows])[0] if self.windows else None

    def data_wait_fraction(self) -> float | None:
        """Median fraction of the time that the device waited for data; None if there is no steady window."""
        return self._quantiles([w.data_wait_fraction for w in self.windows])[0] if self.windows else None

    def _quantiles(self, values: list[float]) -> list[float]:
        """Median, 10th and 90th percentile, weighted by steps: the window before an evaluation is often a
        short one."""
        weights = [int(window.steps) for window in self.windows]
        return np.quantile(np.repeat(values, weights), [0.5, 0.1, 0.9]).tolist()
