"""Decides how the threads of one computation wait for each other.

OpenMP's threads, with which torch computes on the CPU, spin for milliseconds at the end of each parallel part,
by default. If they sleep at once instead, each part begins by waking them, which costs a quarter of the speed.
So they spin for a moment, longer than the time between most parts, and then sleep.
"""

import os

# variables of GNU's and LLVM's OpenMP that set how threads wait
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# for GNU's OpenMP, in turns of a loop: about 0.1 ms
_SPIN_COUNT = "3000"


def wait_briefly() -> None:
    """Let OpenMP's threads spin for a moment and then sleep, unless the user has set how threads wait.

    Call this before torch is imported: OpenMP reads its variables once.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT=_SPIN_COUNT)
