"""The errors that a person can mend, and the exit codes that tell them apart.

Our own invariants are asserted; everything else here reaches the user as one message without a traceback.
"""

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, checkpointed, start it again


class UserError(ValueError):
    """Bad input found before training. The message names the key or file and the remedy; the exit code is 2."""

    exit_code = EXIT_USER_ERROR


class TrainingError(RuntimeError):
    """Training cannot go on (NaN loss, out of memory, …). What was saved stays; the exit code is 1."""

    exit_code = EXIT_FAILURE


class OutOfMemory(TrainingError):
    """A process has run out of device memory: perhaps this one alone."""


class PeerError(TrainingError):
    """Another process has failed before, and says why; this one says nothing, and ends with the same exit code."""

    def __init__(self, exit_code: int):
        super().__init__("another process has failed")
        self.exit_code = exit_code


class Preempted(Exception):
    """A signal asked the run to stop; it has been checkpointed. The exit code is 75."""

    exit_code = EXIT_PREEMPTED
