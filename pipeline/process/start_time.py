"""Tells when this process and its command were started, in seconds of `time.perf_counter`."""

import os
import time
from pathlib import Path


def process_started(pid: int | str = "self") -> float:
    """Return the start of a process, to 10 ms.

    Raises:
        OSError: there is no such process.
    """
    # after the name of the program, which may hold spaces and brackets: field 22, in ticks since the boot
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() - age


def command_started() -> float:
    """Return the start of the command that a person gave.

    launch.sh hands its own start over, in seconds since 1970. `accelerate launch`, as other launchers of
    several processes, is the parent of this process. Otherwise this process is the command.
    """
    given = os.environ.get("QUICKRES_START_TIME")
    if given is not None:
        return time.perf_counter() - max(time.time() - float(given), 0.0)
    of_launcher = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
    return process_started(os.getppid() if of_launcher else "self")
