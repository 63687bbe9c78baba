"""Measures how many CPU cores other programs use."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.process.system_files import read_text

# the kernel counts in ticks of 10 ms; a shorter measurement would be too coarse
_SHORTEST_S = 0.5
# cores; less changes no number of threads, and is not measured twice
_NOTICED = 0.5
_PROC = Path("/proc")


@dataclass(frozen=True)
class _Sample:
    """CPU seconds up to one moment.

    Attributes:
        at_s: the moment, on the clock of `time.monotonic`.
        all_s: of all programs, on the cores of this process.
        own_s: of this process and of all that it has started.
    """

    at_s: float
    all_s: float
    own_s: float


class OtherPrograms:
    """Measures the CPU time that other programs take on the cores of this process, from now on.

    Programs of lower priority (`nice`) do not count, unless this process has a lower priority too: they give
    way. On systems without /proc other programs are not seen.
    """

    def __init__(self) -> None:
        self._began = _sample()

    def num_cores(self) -> float:
        """Return how many cores of this process the others use; 0.0 if that is unknown.

        This is the mean so far, or the mean of another half second if that is less: a short burst of load, as
        when a program is compiled, has then ended. Waits until a measurement has lasted half a second.
        """
        so_far = _cores_used_since(self._began)
        return min(so_far, _cores_used_since(_sample())) if so_far >= _NOTICED else so_far


def _cores_used_since(began: _Sample | None) -> float:
    """Return how many cores the others have used on average; 0.0 if the system does not tell."""
    if began is None:
        return 0.0
    time.sleep(max(began.at_s + _SHORTEST_S - time.monotonic(), 0.0))
    now = _sample()
    if now is None:
        return 0.0
    others_s = (now.all_s - began.all_s) - (now.own_s - began.own_s)
    return min(max(others_s / (now.at_s - began.at_s), 0.0), float(len(os.sched_getaffinity(0))))


def _sample() -> _Sample | None:
    """Return a sample; None if the system does not tell."""
    at_s, lines = time.monotonic(), read_text(_PROC / "stat").splitlines()
    ticks_per_s, all_s = os.sysconf("SC_CLK_TCK"), 0.0
    of_cores = {words[0]: words[1:] for words in map(str.split, lines) if words}
    for core in os.sched_getaffinity(0):
        ticks = of_cores.get(f"cpu{core}")
        if ticks is None:  # no Linux, or a container that numbers its cores in another way
            return None
        user, nice, system, _, _, irq, softirq = map(int, ticks[:7])
        all_s += (user + (nice if os.nice(0) > 0 else 0) + system + irq + softirq) / ticks_per_s
    return _Sample(at_s, all_s, sum(os.times()[:4]) + _cpu_s_of_children(os.getpid(), ticks_per_s))


def _cpu_s_of_children(pid: int, ticks_per_s: int) -> float:
    """Return the CPU seconds of all processes below a process that still run."""
    try:
        threads = os.listdir(_PROC / f"{pid}/task")
    except OSError:  # the process has ended
        return 0.0
    lists = [read_text(_PROC / f"{pid}/task/{thread}/children").split() for thread in threads]
    children = [int(child) for of_thread in lists for child in of_thread]
    return sum(_cpu_s(child, ticks_per_s) + _cpu_s_of_children(child, ticks_per_s) for child in children)


def _cpu_s(pid: int, ticks_per_s: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    # after the name of the program, which may hold spaces and brackets: fields 14 to 17
    fields = read_text(_PROC / f"{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / ticks_per_s
