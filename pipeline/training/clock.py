"""Time as an object: windows of steady training, without warm-up, evaluation and saving."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Clock:
    """Times windows of steps between log points, and how long the device waited for data.

    A window counts only where every step of it ran after warm-up. Device time spent waiting is read from events: one after each step, one
    where the next batch is there; on the CPU it is the host's time in the loader. `first_step_at` is when the first step of this
    process was done, in seconds of `time.perf_counter`.

    Args:
        device: of the steps.
        saved: `state_dict` of an earlier run to continue.
        max_ahead: steps that the host may enqueue before the device has done them, which bounds the memory of batches in flight; on the
            CPU there are none.
    """

    def __init__(self, device: torch.device, saved: dict[str, Any] | None = None, max_ahead: int = 8):
        saved = saved or {}
        self._cuda = device.type == "cuda"
        self._device = device
        self.windows: list[dict[str, float]] = list(saved.get("windows", []))
        self.train_s: float = saved.get("train_s", 0.0)
        self.warmup_s: float = 0.0
        self.first_step_at: float | None = None
        self._ahead: deque[torch.cuda.Event] = deque()
        self.max_ahead = max_ahead if self._cuda else 0
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._host_wait_s = 0.0
        self._asked_at = self._began = time.perf_counter()
        self._steps = self._images = 0
        self._steady = self._spoiled = False

    def start(self, steady: bool) -> None:
        """Open a window now, the device being idle. STEADY: warm-up is over."""
        self._steps = self._images = 0
        self._host_wait_s = 0.0
        self._waits.clear()
        self._ahead.clear()  # what happened between two windows is no wait for data
        self._steady, self._spoiled = steady, False
        self._began = time.perf_counter()

    def ask(self) -> None:
        """The loader is about to be asked for the next batch."""
        self._asked_at = time.perf_counter()

    def arrived(self) -> None:
        """The next batch is there (on the device's stream: will be there when the work enqueued so far is done)."""
        self._host_wait_s += time.perf_counter() - self._asked_at
        if self._cuda and self._ahead:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._waits.append((self._ahead[-1], event))

    def step(self, num_images: int) -> None:
        """A step with NUM_IMAGES images, over all processes, has been enqueued."""
        self._steps += 1
        self._images += num_images
        if self.first_step_at is None:
            self._synchronize()
            self.first_step_at = time.perf_counter()
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ahead.append(event)
            if len(self._ahead) > self.max_ahead:
                self._ahead.popleft().synchronize()

    def spoil(self) -> None:
        """The open window is training time, but no measure of speed: something else was done in it, such as profiling."""
        self._spoiled = True

    @property
    def warming_up(self) -> bool:
        """Whether the open window holds warm-up steps: it is to be closed as soon as they are over."""
        return not self._steady

    def close(self) -> dict[str, float] | None:
        """Close the window, waiting for the device.

        Returns:
            `images_per_sec`, `step_s`, `data_wait_fraction` and `steps` of the window; None where nothing ran, or warm-up was in it, or
            it was spoilt.
        """
        self._synchronize()
        elapsed = time.perf_counter() - self._began
        self.train_s += elapsed
        if not self._steady:
            self.warmup_s += elapsed
        window = None
        if self._steps and self._steady and not self._spoiled:
            waited = (
                sum(before.elapsed_time(after) for before, after in self._waits) / 1e3
                if self._cuda
                else self._host_wait_s
            )
            window = {
                "images_per_sec": self._images / elapsed,
                "step_s": elapsed / self._steps,
                "data_wait_fraction": min(waited / elapsed, 1.0),
                "steps": self._steps,
            }
            self.windows.append(window)
        return window

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time that is not training: evaluation, saving. Use between `close` and `start`."""
        yield
        self._synchronize()

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def state_dict(self) -> dict[str, Any]:
        return {"windows": self.windows, "train_s": self.train_s}

    def summary(self) -> dict[str, Any]:
        """Throughput over the steady windows: images per second {median, p10, p90, n}, step time and share of data wait."""
        if not self.windows:
            nothing = {"median": None, "p10": None, "p90": None, "n": 0}
            return {"images_per_sec": nothing, "step_ms": None, "data_wait_fraction": None}
        # weighted by steps: the window before an evaluation is often a short one
        weights = [int(window["steps"]) for window in self.windows]

        def quantiles(key: str) -> list[float]:
            return np.quantile(
                np.repeat([window[key] for window in self.windows], weights), [0.5, 0.1, 0.9]
            ).tolist()

        median, p10, p90 = quantiles("images_per_sec")
        return {
            "images_per_sec": {"median": median, "p10": p10, "p90": p90, "n": len(self.windows)},
            "step_ms": 1e3 * quantiles("step_s")[0],
            "data_wait_fraction": quantiles("data_wait_fraction")[0],
        }
