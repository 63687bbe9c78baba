"""Starts the processes of a run with accelerate's launcher, and ends with the exit code of the run.

`python -m pipeline.distributed.launcher …` takes the arguments of `accelerate launch`, which itself returns 1
for every failure, below a traceback of its own.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import NoReturn

import psutil

from pipeline.errors import EXIT_FAILURE, EXIT_PREEMPTED, TrainingError
from pipeline.process.exit import leave_now
from pipeline.process.fast_import import imports_uncollected

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Stop:
    """Passes a signal that asks the run to stop on to its processes, as SIGTERM; each ends when it has saved.

    torchrun's own handler would end the launcher without the exit codes, and kill a process that saves for
    more than 30 s.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        processes = psutil.Process().children()
        if not processes:
            leave_now(128 + number)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()


def outcome(ends: Iterable[tuple[int, int]], signal_number: int = 0) -> tuple[int, str | None]:
    """Return the exit code of a run whose processes have not all ended well, and a message or None.

    The first process that ended by itself has printed the reason, or another process on its behalf. If all
    were ended by signals, nobody has.

    Args:
        ends: rank and exit code of the failed processes, the first first. A negative code is the signal that
            killed the process; one above 128 is 128 and the signal at which the process left silently.
        signal_number: signal by which the run was asked to stop; 0 for none.
    """
    ends = list(ends)
    for _, code in ends:
        if _signal_of(code) not in set(signal.Signals):
            return code, None
    rank, code = ends[0]
    number = signal.Signals(_signal_of(code))
    is_stop = number == signal.SIGTERM and not (signal_number and all(code < 0 for _, code in ends))
    if is_stop:  # sent to this process, or it ended before the one that says so
        return EXIT_PREEMPTED, f"stopped: process {rank} got {number.name}; start again with resume=auto"
    if signal_number:
        return 128 + signal_number, None
    cause = " (out of memory?)" if number == signal.SIGKILL else ""
    return EXIT_FAILURE, (
        f"error: process {rank} was killed by {number.name}{cause}. Saved checkpoints are kept; start "
        "again with resume=auto"
    )


def _signal_of(code: int) -> int:
    return -code if code < 0 else code - 128


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Start the processes, wait for them, and end with the exit code of the run."""
    stop = _Stop()
    for number in _SIGNALS:
        signal.signal(number, stop)
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # options of torchrun, by which an operator of Kubernetes sets up several hosts
    try:
        with imports_uncollected():
            from accelerate.commands.launch import launch_command, launch_command_parser
            from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    except TrainingError as error:
        leave_now(error.exit_code, f"error: {error}")
    # torchrun logs each end of a process, of which the process itself has told
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    arguments = launch_command_parser().parse_args(argv)
    arguments.signals_to_handle = "SIGQUIT"  # torchrun: of which it needs one at least
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        leave_now(*outcome([(rank, failure.exitcode) for rank, failure in failures], stop.number))
    sys.exit(0)


if __name__ == "__main__":
    main()
