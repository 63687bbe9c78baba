"""Tells when this process and its command were started, and helps launch.sh to time the exit."""

import contextlib
import os
import time
from pathlib import Path


def process_started(pid: int | str = "self") -> float:
    """Return the start of a process in seconds of `time.perf_counter`, to 10 ms; now if it cannot be seen."""
    try:
        # after the name of the program, which may hold spaces and brackets: field 22, in ticks since the boot
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.perf_counter()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() - age


def command_started() -> float:
    """Return the start of the command that a person gave, in seconds of `time.perf_counter`.

    launch.sh hands its own start over, in seconds since 1970. `accelerate launch` and torchrun are written in
    Python, and are the parent of this process. Otherwise this process is the command: somebody may have set
    the variables of a launcher in a shell, which has been open for hours.
    """
    given = os.environ.get("QUICKRES_START_TIME")
    if given is not None:
        return time.perf_counter() - max(time.time() - float(given), 0.0)
    of_launcher = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
    parent = os.getppid()
    return process_started(parent if of_launcher and _runs_python(parent) else "self")


def _runs_python(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith(("python", "pypy"))
    except OSError:  # it has ended, or belongs to another user
        return False


def tell_launcher(result: Path) -> None:
    """Tell launch.sh the present time and where result.json is.

    launch.sh adds the seconds until this process is gone, which the process cannot measure itself.
    """
    pipe = os.environ.get("QUICKRES_RESULT_PIPE")
    if pipe is None or "\n" in str(result.resolve()):
        return
    with contextlib.suppress(OSError):  # launch.sh has been killed
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, f"{time.time_ns() // 1000} {result.resolve()}\n".encode())
        os.close(descriptor)
