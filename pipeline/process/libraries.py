"""Explains why the system does not load a shared library."""

import math
import os
import re
import resource
from pathlib import Path

from pipeline.errors import OutOfMemory, TrainingError

# glibc's words, of torch's library, of DALI's, or of one that a compiler wrote; a library that another one
# needs is named without its folder
_NOT_MAPPED = re.compile(r"(/[^\n]*?|[^\s:/]+): failed to map segment from shared object")
_FORBIDDEN = "Operation not permitted"
# GiB of addresses that torch and DALI need; with less, a program may hang when it starts a thread
_LEAST_GIB = 5.0
_REMOUNT = (
    "remount it with exec, or use another place: XDG_CACHE_HOME for compiled kernels, TMPDIR for temporary "
    "files, another folder of the project for packages"
)


def explain_library(error: BaseException) -> TrainingError | None:
    """Return the message for a library that was found but not loaded; None for any other error.

    Either its file system allows no programs, or there is not enough memory for it.
    """
    found = _NOT_MAPPED.search(str(error))
    if found is None:
        return None
    library, limit = found[1], address_limit()
    if library.startswith("/") and (_FORBIDDEN in str(error) or _is_noexec(Path(library))):
        return TrainingError(
            f"{library}: cannot be loaded, because its file system is mounted noexec; {_REMOUNT}"
        )
    remedy = limit or "end other programs, and look whether its file system allows programs (noexec)"
    return OutOfMemory(f"{library}: there is no memory to load it; {remedy}")


def check_address_limit() -> None:
    """Check the limit of a process's addresses, which `ulimit -v` and some schedulers of clusters set.

    Raises:
        OutOfMemory: torch and DALI cannot be loaded.
    """
    if _limit_gib() < _LEAST_GIB:
        raise OutOfMemory(f"torch and DALI need {_LEAST_GIB:g} GiB of addresses, and {address_limit()}")


def address_limit() -> str:
    """Return the limit of this process's addresses and the remedy; empty without a limit."""
    limit = _limit_gib()
    if limit == math.inf:
        return ""
    return f"this process may use {limit:.1f} GiB of addresses; allow more (ulimit -v unlimited)"


def _limit_gib() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit / 2**30


def _is_noexec(library: Path) -> bool:
    for path in (library, library.parent):  # the library may be a link
        try:
            return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
        except OSError:
            continue
    return False
