"""Lists the kernels of a GPU by their share of the time, from a profile of torch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd import DeviceType

_NAME_LENGTH = 100  # a template of C++ has up to a thousand characters


class Profile(Protocol):
    """A profile that has ended, such as `torch.profiler.profile`."""

    def events(self) -> Iterable[Any] | None: ...


@dataclass(frozen=True)
class KernelShare:
    """The time of all launches of one kernel.

    Attributes:
        name: of the kernel, as the driver knows it; copies and fills count as kernels.
        microseconds: of one repetition of the profiled work, such as one step.
        fraction: of the time of all kernels; 0.25 is a quarter. Idle time does not count.
        launches: in one repetition.
    """

    name: str
    microseconds: float
    fraction: float
    launches: float


class Launch(NamedTuple):
    """One launch of a kernel, copies and fills among them; times in microseconds."""

    name: str
    start: float
    end: float

    @property
    def microseconds(self) -> float:
        return self.end - self.start


def launches_of(profile: Profile) -> list[Launch]:
    """Return what a profile saw on a GPU, in the order of the starts; nothing if no GPU was profiled.

    Replays of a CUDA graph are seen as the kernels in it.
    """
    launches = [
        Launch(event.name, event.time_range.start, event.time_range.end)
        for event in profile.events() or ()
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
    ]
    return sorted(launches, key=lambda launch: launch.start)


def kernel_shares(profile: Profile, repeats: int = 1) -> list[KernelShare]:
    """Return a row for each kernel, the largest share first.

    Args:
        profile: of work on a GPU, with `ProfilerActivity.CUDA`.
        repeats: how often the profile holds the work, such as its number of steps.

    Returns:
        The rows. Their fractions add up to 1; there is none if nothing ran on a GPU.
    """
    timed = [(launch.name, launch.microseconds, 1) for launch in launches_of(profile)]
    return add_by_name(timed, repeats, sum(spent for _, spent, _ in timed) or 1.0)


def add_by_name(timed: Iterable[tuple[str, float, int]], repeats: int, whole: float) -> list[KernelShare]:
    """Return a row for each name, the largest share first.

    Args:
        timed: name, microseconds and launches.
        repeats: as for `kernel_shares`.
        whole: microseconds of which the rows have their fractions.
    """
    time, count = defaultdict[str, float](float), Counter[str]()
    for name, spent, launches in timed:
        time[name] += spent
        count[name] += launches
    rows = [
        KernelShare(name, spent / repeats, spent / whole, count[name] / repeats)
        for name, spent in time.items()
    ]
    return sorted(rows, key=lambda row: (-row.microseconds, row.name))


def profile_kernels(work: Callable[[], object], device: torch.device, repeats: int = 1) -> list[KernelShare]:
    """Run work REPEATS times under the profiler, which records its kernels alone; return a row for each.

    Args:
        work: enqueues kernels on a GPU. It has run before: nothing is left to compile or to capture.
        device: of the work.
        repeats: as for `kernel_shares`.
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize(device)
    return kernel_shares(profile, repeats)


def kernel_table(rows: Sequence[KernelShare], limit: int = 40) -> str:
    """Write the rows as a Markdown table; those after LIMIT are one row, and the last row is the sum."""
    further = rows[limit:]
    shown = list(rows[:limit])
    if further:
        shown.append(sum_of(further, f"{len(further)} other kernels"))
    shown.append(sum_of(rows, "all kernels"))
    lines = ["| kernel | µs | share | launches |", "|---|---:|---:|---:|"]
    for row in shown:
        name = row.name if len(row.name) <= _NAME_LENGTH else f"{row.name[: _NAME_LENGTH - 1]}…"
        lines.append(
            f"| `{name.replace('|', chr(92) + '|')}` | {row.microseconds:,.1f} | {row.fraction:.1%} | "
            f"{row.launches:,.1f} |"
        )
    return "\n".join(lines) + "\n"


def sum_of(rows: Sequence[KernelShare], name: str) -> KernelShare:
    """Return the sum of the rows as a row of this name."""
    return KernelShare(
        name,
        sum(row.microseconds for row in rows),
        sum(row.fraction for row in rows),
        sum(row.launches for row in rows),
    )
