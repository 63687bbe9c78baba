"""Counts the CPU cores that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.process.system_files import read_text

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many CPU cores this process may use at once.

    These are the cores that the system lets it run on, or fewer if its control group has a limit of CPU time:
    a container with `--cpus=4` runs on all cores of its host. With a thread for each of them it would use up
    its time at the start of each period, and stop until the next one.
    """
    cores = len(os.sched_getaffinity(0))
    return min([cores, *(max(math.ceil(limit), 1) for limit in _limits())])


def share_of_cores(num_processes: int) -> int:
    """Return the usable cores of each of several processes, at least 1."""
    return max(usable_cores() // num_processes, 1)


def _limits() -> list[float]:
    """Return the limits of the control groups of this process, in cores."""
    limits = []
    for line in read_text(_OWN).split("\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        if not controllers:  # version 2
            limits += [_limit(group) for group in _groups(_CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            roots = dict.fromkeys((_CGROUPS / controllers, _CGROUPS / "cpu"))
            limits += [_limit_of_version_1(group) for root in roots for group in _groups(root, path)]
    return [limit for limit in limits if limit is not None]


def _groups(root: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a group and of those above it. In a container the path may be that of the host, of
    which the container sees its own part alone, as the root."""
    names = [name for name in path.split("/") if name]
    for count in range(len(names), -1, -1):
        yield root.joinpath(*names[:count])


def _limit(group: Path) -> float | None:
    quota, _, period = read_text(group / "cpu.max").partition(" ")
    return _quotient(quota, period)


def _limit_of_version_1(group: Path) -> float | None:
    return _quotient(read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us"))


def _quotient(quota: str, period: str) -> float | None:
    """Return quota / period, in cores; None without a limit, which is `max` or -1."""
    quota, period = quota.strip(), period.strip()
    are_numbers = all(word.isascii() and word.isdigit() for word in (quota, period))
    return int(quota) / int(period) if are_numbers and int(period) else None
