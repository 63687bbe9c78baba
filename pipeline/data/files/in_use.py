"""What tells other processes that a cache entry is being read: a lock on one of its files, which goes with the process."""

import contextlib
import fcntl
import os
import weakref
from pathlib import Path


class InUse:
    """Says of a file that it is in use, as long as this object lives.

    A copy of the object in another process says nothing: it is None.

    Raises:
        OSError: there is no such file.
    """

    def __init__(self, path: Path):
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


def is_in_use(path: Path) -> bool:
    """Whether any process says so of a file."""
    try:
        file = os.open(
            path, os.O_RDWR
        )  # a network file system locks for one process alone only what that may write
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False
