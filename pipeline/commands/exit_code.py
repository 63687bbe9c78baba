"""Runs the work of a command; turns its errors into one line and an exit code."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.errors import EXIT_FAILURE, TrainingError, UserError
from pipeline.process.exit import flush, leave_without_dismantling
from pipeline.process.interrupt import stopped_by_interrupt
from pipeline.process.libraries import explain_library
from pipeline.process.streams import lost_output, make_streams_safe


def run_process(main: Callable[[], int], *, at_sigterm: bool = False) -> NoReturn:
    """Run the main function of a program, and end the process with its exit code; 130 after Ctrl-C.

    Args:
        main: returns the exit code.
        at_sigterm: SIGTERM does what Ctrl-C does, unless this is one of several processes.
    """
    _start_again_if_needed()
    make_streams_safe()
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    with stopped_by_interrupt(at_sigterm=at_sigterm and is_alone):
        code = main()
    if "torch" in sys.modules:
        leave_without_dismantling(code)
    sys.exit(code)


def _start_again_if_needed() -> None:
    """Start again with docstrings, without which DALI cannot be imported, and with file names in UTF-8.

    `python -OO` removes docstrings; in a locale without UTF-8, classes would have other names than in a run.
    """
    options, wanted = sys.orig_argv[1:], dict[str, str]()
    if sys.flags.optimize > 1:
        options = ["-O" if word == "-OO" else word for word in options]
        wanted["PYTHONOPTIMIZE"] = "1"
    if sys.getfilesystemencoding() != "utf-8":
        wanted["PYTHONUTF8"] = "1"
    if any(os.environ.get(name) != value for name, value in wanted.items()):  # once
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *options])


def checked_output(code: int) -> int:
    """Return the exit code; 1 with a message instead of 0 if the command's output could not be written."""
    flush()
    error = lost_output()
    if code or error is None:
        return code
    print(f"error: stdout: the output cannot be written ({error.strerror})", file=sys.stderr)
    return EXIT_FAILURE


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
        fault = explain_library(error) or _explain(error)
        if fault is None:
            raise
        failure = fault
    print(f"error: {failure}", file=sys.stderr)
    return failure.exit_code


def _explain(error: Exception) -> TrainingError | None:
    from pipeline.training.faults import explain_fault  # imports torch, which not every command needs

    return explain_fault(error)
