"""Decides how the threads of one computation wait for each other, and how many there are.

The threads of a training step on the CPU wait for each other hundreds of times. If another program takes the
core of one of them, the others wait until it is back, and a step takes several times as long:

- Threads that compute oneDNN's weight gradients spin at a barrier of its own, and never give up their core,
  whatever OpenMP is told. So a run leaves out the cores that other programs use, and computes with fewer
  threads.
- OpenMP's threads spin for milliseconds at the end of each parallel part, by default. If they sleep at once
  instead, each part begins by waking them, which costs a quarter of the speed. So they spin for a moment,
  longer than the time between most parts, and then sleep.
"""

import os
from dataclasses import dataclass

from pipeline.process.cores import usable_cores
from pipeline.process.other_programs import OtherPrograms

# variables of GNU's and LLVM's OpenMP that set how threads wait
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# for GNU's OpenMP, in turns of a loop: about 0.1 ms
_SPIN_COUNT = "3000"
# set by launch.sh, which replaces OMP_NUM_THREADS: what the user has set; empty if nothing
_USER_THREADS = "QUICKRES_USER_THREADS"
_REMEDY = "set OMP_NUM_THREADS to choose the number"


def wait_briefly() -> None:
    """Let OpenMP's threads spin for a moment and then sleep, unless the user has set how threads wait.

    Call this before torch is imported: OpenMP reads its variables once.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT=_SPIN_COUNT)


@dataclass(frozen=True)
class ThreadCount:
    """A number of threads to compute with on the CPU.

    Attributes:
        number: at least 1.
        reason: why it is not the usual number, for the log; empty if it is.
    """

    number: int
    reason: str = ""

    def __str__(self) -> str:
        return f"CPU threads: {self.number}{self.reason and f', {self.reason}'}"


def count_threads(usual: int, others: OtherPrograms, before: int | None = None) -> ThreadCount:
    """Choose the number of threads of a training on the CPU.

    Threads sum gradients in another order if their number changes, so the last bits of the weights depend on
    it. It is chosen once for a run, and kept if the run is continued.

    Args:
        usual: number of threads unless there is a reason for fewer.
        others: measured since some time.
        before: the number of the run so far, if it is continued.
    """
    count = _choose(usual, others, before)
    if before in (None, count.number):
        return count
    changed = f"but {before} before; the last bits of the result may differ from an uninterrupted run's"
    return ThreadCount(count.number, f"{changed} ({count.reason})" if count.reason else changed)


def _choose(usual: int, others: OtherPrograms, before: int | None) -> ThreadCount:
    if usual == 1 or os.environ.get(_USER_THREADS, os.environ.get("OMP_NUM_THREADS")):
        return ThreadCount(usual)
    cores, allowed = len(os.sched_getaffinity(0)), usable_cores()
    if before is not None and before <= allowed:
        return ThreadCount(before, "" if before == usual else f"as the run used before; {_REMEDY}")
    busy = others.num_cores()
    free = min(max(cores - int(busy + 0.5), 1), allowed)
    if free >= usual:
        return ThreadCount(usual)
    if free == allowed < cores:
        reason = f"because a limit of CPU time allows only {allowed} of the {cores} cores"
        return ThreadCount(free, f"{reason}; {_REMEDY}")
    reason = f"because other programs use {busy:.1f} of the {cores} cores"
    return ThreadCount(free, f"{reason}; {_REMEDY}")
