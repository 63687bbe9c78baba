"""Times the parts of a run, from the command to its end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Part = Literal[
    "launcher",
    "imports",
    "data",
    "build",
    "compile",
    "capture",
    "training",
    "evaluation",
    "saving",
    "finishing",
]


@dataclass(frozen=True)
class DataReading:
    """Tells how the data set was read.

    Attributes:
        seconds: of all the reading, most of it beside the imports.
        first_time: True if files were downloaded, decoded or indexed for it; False if a cache held all of it;
            None if it needs no such work.
    """

    seconds: float
    first_time: bool | None


class Timeline:
    """Divides the time of a run into parts, without gaps: one part ends where the next one begins.

    Only the main thread counts, which waits for the device at the borders of training, evaluation and saving.

    Args:
        started: start of the command, in seconds of `time.perf_counter`; default: now.

    Attributes:
        data: how the data set was read; None if that is not known.
    """

    def __init__(self, started: float | None = None) -> None:
        self.started = time.perf_counter() if started is None else started
        self.data: DataReading | None = None
        self._since, self._part = self.started, "launcher"
        self._seconds: dict[str, float] = {}

    def begin(self, part: Part, at: float | None = None) -> None:
        """End the present part and begin another one, now or at a time of `time.perf_counter`."""
        at = time.perf_counter() if at is None else max(at, self._since)
        self._add(self._part, at - self._since)
        self._since, self._part = at, part

    @contextmanager
    def within(self, part: Part) -> Iterator[None]:
        """Count the time inside as PART; then the part before goes on."""
        before = self._part
        self.begin(part)
        yield
        self.begin(before)  # type: ignore[arg-type]

    def move(self, seconds: float, source: Part, target: Part) -> None:
        """Count seconds that were spent in SOURCE as TARGET."""
        self._add(source, -seconds)
        self._add(target, seconds)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part up to now, in the order in which the parts began."""
        now = time.perf_counter() - self._since
        parts = {**self._seconds, self._part: self._seconds.get(self._part, 0.0) + now}
        return {part: seconds for part, seconds in parts.items() if seconds > 0}

    def _add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds
