"""Makes the import of thousands of modules faster."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.process.libraries import check_address_limit, explain_library
from pipeline.process.world import rank_on_host


@contextmanager
def _shown() -> Iterator[None]:
    """Say on a terminal that torch is imported, which takes seconds; remove the line afterwards."""
    shows = rank_on_host() == 0 and sys.stderr.isatty()
    if shows:
        sys.stderr.write("importing torch …\r")
        sys.stderr.flush()
    try:
        yield
    finally:
        if shows:
            sys.stderr.write("\x1b[2K")
            sys.stderr.flush()


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """Import torch and packages that build on it without garbage collection, and keep the objects out of
    later collections.

    The imports make a million objects that stay. The collector would walk over them again and again
    meanwhile, which is a third of the import time. The imported objects are frozen afterwards, so later
    collections are short too, such as the one before a CUDA graph is captured. Does nothing in a process that
    has imported torch already, or that collects no garbage.

    Raises:
        TrainingError: the system does not load a library; with the reason and the remedy.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    check_address_limit()
    gc.disable()
    try:
        with _shown():
            yield
    except (ImportError, OSError) as error:  # torch opens its first library itself
        fault = explain_library(error)
        if fault is None:
            raise
        raise fault from error
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # nanobind, in Triton, reports frozen objects at exit as a leak
