"""How a process of a run ends before its main thread is through: the exit code for launch.sh, a last word, and no clearing up."""

import contextlib
import os
from typing import NoReturn


def rank() -> int:
    """This process's number, as the launcher says; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def report_exit_code(code: int) -> None:
    """`accelerate launch` returns 1 for every failure: launch.sh reads the code from a file, which the first process to end writes.

    The first, because torchrun stops the others when one fails: what they return then is not the reason. But only rank 0, which writes
    the result after the others have left, can say that all went well.
    """
    path = os.environ.get("QUICKRES_EXIT_CODE_FILE")
    if path and (code or rank() == 0):
        with contextlib.suppress(OSError), open(path, "x") as file:
            file.write(f"{code}\n")


def leave_now(code: int, message: str | None = None) -> NoReturn:
    """End this process at once, from any thread, even where the main thread is stuck in a call that runs no Python.

    What was saved stays: checkpoints are whole or not there.
    """
    if os.isatty(1):
        _write(1, "\x1b[?25h")  # a progress bar hides the cursor
    if message is not None:
        _write(2, f"{message}\n")  # not print: the main thread may hold the lock of sys.stderr
    report_exit_code(code)
    os._exit(code)


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have hung up, or `| tee` be gone: all the more to be left
        os.write(descriptor, text.encode())
