"""Reads from the environment which processes a launcher has started together."""

import os
from dataclasses import dataclass

from pipeline.errors import UserError

# torch's variables of a process that belongs to others: all four are needed to join them
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# further variables from which torch and accelerate guess that there are others, also those of three MPIs
_GUESSED = (
    *("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_RANK", "PMI_SIZE"),
    *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    *(f"MV2_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
)


@dataclass(frozen=True)
class World:
    """Describes the place of this process among the processes of its run.

    Attributes:
        rank: of this process among all.
        size: number of all processes.
        local_rank: number of this process on its host.
        local_size: number of processes that the launcher of this host has started.
        host: address of the first process, at which all meet; empty if there are no others.
        port: on that host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: str = ""
    port: int = 0

    @property
    def local_ranks(self) -> range:
        """The ranks on this host."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)


def read_world() -> World:
    """Return the world that a launcher has set up; that of one process if torch's variables are incomplete.

    Raises:
        UserError: a variable is not a number of its range.
    """
    if not all(os.environ.get(name) for name in _NEEDED):
        return World()
    size = _number("WORLD_SIZE", 1, 1_000_000)
    rank = _number("RANK", 0, size - 1)
    port = _number("MASTER_PORT", 1, 65_535)
    local_size = _number("LOCAL_WORLD_SIZE", 1, size, default=1)
    local_rank = _number("LOCAL_RANK", 0, local_size - 1, default=0)
    return World(rank, size, local_rank, local_size, os.environ["MASTER_ADDR"], port)


def rank_on_host() -> int:
    """Return the number of this process on its host, 0 if it is not known. Number 0 reports errors."""
    try:
        return read_world().local_rank
    except UserError:
        return 0


def forget_world() -> str | None:
    """Remove the variables of launchers from the environment of this process, which trains alone.

    Returns:
        A warning that names the variables; None if there were none, or if they told of one process as well.
    """
    told_of_one = all(os.environ.get(name) for name in _NEEDED)
    names = [name for name in (*_NEEDED, *_GUESSED) if os.environ.pop(name, None) is not None]
    # an address alone leads nobody astray
    strays = [name for name in names if not name.startswith("MASTER_")]
    if told_of_one or not strays:
        return None
    return (
        f"{', '.join(strays)}: set by another launcher, and ignored: this process trains alone. To join "
        f"others, set all of {', '.join(_NEEDED)}"
    )


def _number(name: str, lowest: int, highest: int, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdecimal() and lowest <= int(text) <= highest):
        raise UserError(
            f"{name}={text}: expected a whole number from {lowest} to {highest}; correct it, or train alone: "
            f"unset {' '.join(_NEEDED)}"
        )
    return int(text)
