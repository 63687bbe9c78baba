"""Runs the work of a command; turns its errors into one line and an exit code."""

import sys
from collections.abc import Callable

from pipeline.errors import TrainingError, UserError


def exit_code_of(work: Callable[[], int]) -> int:
    """Return the exit code of a command's work; print an error of bad input or of the machine as one line.

    Raises:
        Exception: a bug, which is neither bad input nor a fault of the machine.
    """
    try:
        return work()
    except (UserError, TrainingError) as error:
        failure = error
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        from pipeline.training.faults import explain_fault  # imports torch, which not every command needs

        fault = explain_fault(error)
        if fault is None:
            raise
        failure = fault
    print(f"error: {failure}", file=sys.stderr)
    return failure.exit_code
