"""How a process of a run ends before its main thread is through: the exit code for launch.sh, a last word, and no clearing up."""

import contextlib
import glob
import os
import sys
from typing import NoReturn, TextIO

from pipeline.errors import EXIT_FAILURE, EXIT_PREEMPTED


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


def flush() -> None:
    """Send out what is still to be said. Where nobody reads it, it is dropped: Python would end with 120, not with the run's code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)


def silence(stream: TextIO) -> None:
    """What the stream still holds, and all that follows, goes nowhere."""
    with contextlib.suppress(OSError), open(os.devnull, "w") as nobody:
        os.dup2(nobody.fileno(), stream.fileno())


def announce() -> None:
    """From now on a SIGTERM does not kill this process, which the others of this host can see when it is gone."""
    path = os.environ.get("QUICKRES_EXIT_CODE_FILE")
    if path and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        with contextlib.suppress(OSError):
            open(_announcement(path, rank()), "w").close()


def _announcement(path: str, number: int) -> str:
    return f"{path}.{number}"


def failed_beside_this() -> tuple[int, str | None] | None:
    """The exit code, and what this process is to say, where the launcher ends it because another one of this host has failed.

    That one has written a code that is none of a stop; or it is gone and has written none, because it was killed: torchrun sends SIGTERM to
    the rest, as where the run is to stop. One that is gone before it could hear of signals has died of that one, as the whole run is to.
    None where nothing of the kind can be seen.
    """
    path, count = os.environ.get("QUICKRES_EXIT_CODE_FILE"), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not path or count == 1:
        return None
    alive = _ranks_of_launcher()  # before the file is looked for, which a process writes before it is gone
    try:
        with open(path) as file:
            code = int(file.read() or EXIT_PREEMPTED)
    except FileNotFoundError:
        first = rank() - int(os.environ["LOCAL_RANK"])
        gone = [
            number
            for number in range(first, first + count)
            if number not in alive and os.path.exists(_announcement(path, number))
        ]
        if not gone or rank() not in alive:
            return None
        told = f"error: process {gone[0]} is gone before the first step: killed, perhaps for want of memory"
        return EXIT_FAILURE, told if rank() == min(alive) else None
    return (
        (code, "stopped: another process has failed" if rank() == 0 else None)
        if code != EXIT_PREEMPTED
        else None
    )


def _ranks_of_launcher() -> set[int]:
    """The processes that this one's launcher has started and that live."""
    ranks = set()
    for stat in glob.glob("/proc/[0-9]*/stat"):
        with (
            contextlib.suppress(OSError),
            open(stat) as file,
            open(stat.replace("stat", "environ"), "rb") as environment,
        ):
            state, parent = file.read().rpartition(")")[2].split()[:2]
            if state not in "ZX" and int(parent) == os.getppid():
                ranks |= {
                    int(entry[5:]) for entry in environment.read().split(b"\0") if entry.startswith(b"RANK=")
                }
    return ranks


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
    with contextlib.suppress(
        OSError
    ):  # the terminal may have hung up, or `| tee` be gone: all the more to be left
        os.write(descriptor, text.encode())
