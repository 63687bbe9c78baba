"""Importing thousands of modules in less time."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """Import torch and what builds on it without garbage collection, now and later.

    A million objects come and stay, and the collector would walk over them again and again as they come: a third of the time that the
    imports take. What has been imported is never looked at again either, so that each later collection, such as the one before a CUDA
    graph is captured, is a short one. In a process that has torch already, or collects no garbage, nothing changes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # nanobind, in Triton, calls what is not collected at the exit a leak
