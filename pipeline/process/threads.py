"""Lets the threads of one computation sleep while they wait for each other.

By default the threads of OpenMP, with which torch computes on the CPU, spin for milliseconds at the end of
each parallel part. If another program displaces one of them from its core, the others spin until it is back,
and a step takes many times as long.
"""

import os

# variables of GNU's and LLVM's OpenMP that set how threads wait
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively() -> None:
    """Set `OMP_WAIT_POLICY`, unless the user has set how threads wait. Call this before torch is imported."""
    if not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
