"""Sets the number of threads that a training on the CPU computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.distributed.processes import Processes
from pipeline.process.other_programs import OtherPrograms
from pipeline.process.threads import ThreadCount, count_threads
from pipeline.run.environment_record import read_num_threads
from pipeline.run.folder import RunFolder


def set_threads(
    processes: Processes, others: OtherPrograms, continued: RunFolder | None = None
) -> ThreadCount | None:
    """Set the number of threads of a training that begins now, by `count_threads`.

    Args:
        processes: this process among the others.
        others: measured since the start of the command.
        continued: the run that is continued; its number of threads stays.

    Returns:
        The number; None if it was left as it was: on a GPU, and for several processes, whose launcher divides
        the cores among them.
    """
    if processes.device.type != "cpu" or processes.shard.world_size > 1:
        return None
    usual, before = torch.get_num_threads(), None
    if continued is not None:  # older versions recorded no number, and took the usual one
        before = read_num_threads(continued.environment) or usual
    count = count_threads(usual, others, before)
    torch.set_num_threads(count.number)
    return count


@contextmanager
def threads_restored() -> Iterator[None]:
    """Set the number of threads of the caller again at the end of the context."""
    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)
