"""Runs the work of a command and turns its errors into one line and an exit code."""

import sys
from collections.abc import Callable

from pipeline.errors import TrainingError, UserError


def exit_code_of(work: Callable[[], int]) -> int:
    """What a command's work returns; where it fails, the code of that, which one line on stderr tells of.

    Raises:
        Exception: neither bad input nor a fault of the machine: a bug.
    """
    try:
        return work()
    except (UserError, TrainingError) as error:
        told = error
    except (OSError, MemoryError, RuntimeError) as error:
        from pipeline.training.faults import explain_fault  # with torch, which not every command needs

        fault = explain_fault(error)
        if fault is None:
            raise
        told = fault
    print(f"error: {told}", file=sys.stderr)
    return told.exit_code
