"""Counts the CPU cores that this process may use."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many CPU cores this process may use at once.

    These are the cores that the system lets it run on, or fewer if its control group has a limit of CPU time:
    a container with `--cpus=4` runs on all cores of its host, but only a part of the time, and more threads
    than four would stand still together in between.
    """
    cores = len(os.sched_getaffinity(0))
    return min([cores, *(max(math.ceil(limit), 1) for limit in _limits())])


def _limits() -> list[float]:
    """Return the limits of the control groups of this process, in cores."""
    limits = []
    for line in _read(_OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, read = _CGROUPS, _limit
        elif "cpu" in controllers.split(","):
            root, read = _CGROUPS / "cpu", _limit_of_version_1
        else:
            continue
        group = root / path.strip("/")
        if not group.is_dir():  # of the host, not mounted in a container: its own group is the root here
            group = root
        folders = [group, *group.parents]
        limits += [read(folder) for folder in folders[: folders.index(root) + 1]]
    return [limit for limit in limits if limit is not None]


def _limit(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return _cores(quota, period)


def _limit_of_version_1(group: Path) -> float | None:
    return _cores(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> float | None:
    """Return CPU time in time as cores; None without a limit, which is `max` or -1."""
    quota, period = quota.strip(), period.strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(path: Path) -> str:
    """Return the text of a file; empty if the system does not have it."""
    try:
        return path.read_text()
    except OSError:
        return ""
