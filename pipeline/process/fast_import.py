"""Makes the import of thousands of modules faster."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """Import torch and packages that build on it without garbage collection, and keep the objects out of
    later collections.

    The imports make a million objects that stay. The collector would walk over them again and again
    meanwhile, which is a third of the import time. The imported objects are frozen afterwards, so later
    collections are short too, such as the one before a CUDA graph is captured. Does nothing in a process that
    has imported torch already, or that collects no garbage.
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
        atexit.register(gc.unfreeze)  # nanobind, in Triton, reports frozen objects at exit as a leak
