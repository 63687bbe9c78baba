"""Explains why the system does not load a shared library."""

import math
import os
import re
import resource
from pathlib import Path

from pipeline.errors import OutOfMemory, TrainingError

# glibc's words, of torch's library, of DALI's, or of one that a compiler wrote
_NOT_MAPPED = re.compile(r"(?:^|: )([^\n:]+): failed to map segment from shared object")
# GiB of addresses that torch and DALI take; with less, a program may hang when it starts a thread
_LEAST_GIB = 5.0
_REMOUNT = (
    "remount it with exec, or use another place: XDG_CACHE_HOME for compiled kernels, TMPDIR for temporary "
    "files, another folder of the project for packages"
)


def explain_library(error: BaseException) -> TrainingError | None:
    """Return the message for an error that names a library which was found and not loaded; None for another.

    Either its file system allows no programs, or there is not enough memory for it.
    """
    found = _NOT_MAPPED.search(str(error))
    if found is None:
        return None
    library = Path(found[1])
    limit_gib = _limit_gib()
    # that of torch or of DALI that another library needs has no folder
    if library.is_absolute() and (_is_noexec(library) or limit_gib == math.inf):
        return TrainingError(
            f"{library}: cannot be loaded, because its file system is mounted noexec; {_REMOUNT}"
        )
    remedy = "end other programs" if limit_gib == math.inf else _remedy(limit_gib)
    return OutOfMemory(f"{library}: there is no memory to load it; {remedy}")


def check_address_limit() -> None:
    """Check the limit of a process's addresses, which `ulimit -v` and some schedulers of clusters set.

    Raises:
        OutOfMemory: torch and DALI cannot be loaded.
    """
    limit_gib = _limit_gib()
    if limit_gib < _LEAST_GIB:
        raise OutOfMemory(f"torch and DALI take {_LEAST_GIB:g} GiB of addresses, and {_remedy(limit_gib)}")


def _limit_gib() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit / 2**30


def _remedy(limit_gib: float) -> str:
    return f"this process may use {limit_gib:.1f} GiB; allow more (ulimit -v unlimited)"


def _is_noexec(library: Path) -> bool:
    try:
        return bool(os.statvfs(library.parent).f_flag & os.ST_NOEXEC)
    except OSError:
        return False
