"""Defines the errors that a person can mend, and the exit codes that tell them apart.

Each error reaches the user as one message without a traceback. Invariants of the program itself are asserted
instead.
"""

from typing import Any

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 and the number of the signal
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal and saved; start it again


class UserError(ValueError):
    """Bad input, found before training. The message names the key or file and the remedy. Exit code 2."""

    exit_code = EXIT_USER_ERROR


class TrainingError(RuntimeError):
    """Training cannot go on (NaN loss, out of memory, …). Saved checkpoints stay. Exit code 1."""

    exit_code = EXIT_FAILURE


class OutOfMemory(TrainingError):
    """A process has run out of memory, perhaps this one alone."""


class PeerError(TrainingError):
    """Another rank has failed before and prints the reason. This rank prints nothing and ends with the same
    exit code."""

    def __init__(self, exit_code: int):
        super().__init__("another process has failed")
        self.exit_code = exit_code


class Preempted(Exception):
    """A signal asked the run to stop, and it has been saved. Exit code 75."""

    exit_code = EXIT_PREEMPTED


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended work of which a part is done.

    Attributes:
        partial: the result so far, as the function that raises this describes it.
    """

    def __init__(self, partial: Any):
        super().__init__()
        self.partial = partial


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
