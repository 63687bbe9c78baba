"""Ends a process: records the exit code for launch.sh, prints a last message, skips cleanup."""

import contextlib
import os
import sys
from pathlib import Path
from typing import NoReturn, TextIO

from pipeline.errors import EXIT_FAILURE, EXIT_PREEMPTED


def rank() -> int:
    """Return the rank that the launcher gave this process; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def report_exit_code(code: int) -> None:
    """Write the exit code to the file that launch.sh reads: `accelerate launch` returns 1 for every failure.

    The first process to end writes the file: torchrun stops the others when one fails, so their codes are not
    the reason. Only rank 0 reports success, because it writes the result after the others have ended.
    """
    path = os.environ.get("QUICKRES_EXIT_CODE_FILE")
    if path and (code or rank() == 0):
        with contextlib.suppress(OSError), open(path, "x") as file:
            file.write(f"{code}\n")


def flush() -> None:
    """Flush stdout and stderr; drop the content if nobody reads it, because Python would exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)


def silence(stream: TextIO) -> None:
    """Redirect the stream to /dev/null: its buffered content and all later output."""
    with contextlib.suppress(OSError), open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), stream.fileno())


def announce() -> None:
    """Write this process's id to a file, by which the other processes of its host see if it is killed.

    Call this once the process handles SIGTERM.
    """
    path = os.environ.get("QUICKRES_EXIT_CODE_FILE")
    if path and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        with contextlib.suppress(OSError):
            _id_file(path, rank()).write_text(str(os.getpid()))


def failure_of_peer() -> tuple[int, str | None] | None:
    """Return exit code and message if the launcher ends this process because another one on this host failed.

    torchrun sends SIGTERM to the other processes. A user who stops the run sends the same signal. The peer
    has failed if it reported an exit code other than that of a stop. If it is gone without a report, it was
    killed.
    A peer that ended before it handled SIGTERM has written no id. It does not count: SIGTERM itself ended it.

    Returns:
        None if no peer has failed. The message is None if another process prints it.
    """
    path, count = os.environ.get("QUICKRES_EXIT_CODE_FILE"), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not path or count == 1:
        return None
    first, alive = rank() - int(os.environ["LOCAL_RANK"]), {}
    # look at the processes before the report: a process writes its report before it is gone
    for number in range(first, first + count):
        with contextlib.suppress(OSError):
            # a dead process stays in /proc until the launcher reaps it, which it does before it ends the
            # others
            alive[number] = Path("/proc", _id_file(path, number).read_text()).exists()
    try:
        code = int(Path(path).read_text() or EXIT_PREEMPTED)
    except FileNotFoundError:
        gone = [number for number in alive if not alive[number]]
        if not gone:
            return None
        message = (
            f"error: process {gone[0]} is gone before the first step; it was probably killed (out of memory?)"
        )
        return EXIT_FAILURE, message if rank() == min(set(alive) - set(gone), default=rank()) else None
    if code == EXIT_PREEMPTED:
        return None
    return code, "stopped: another process has failed" if rank() == 0 else None


def _id_file(path: str, number: int) -> Path:
    return Path(f"{path}.{number}")


def leave_now(code: int, message: str | None = None) -> NoReturn:
    """End this process at once, from any thread, even if the main thread is stuck in a call into C.

    Saved files stay valid: a checkpoint is complete or absent.
    """
    if os.isatty(1):
        _write(1, "\x1b[?25h")  # a progress bar hides the cursor
    if message is not None:
        _write(2, f"{message}\n")  # not print: the main thread may hold the lock of sys.stderr
    report_exit_code(code)
    os._exit(code)


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal or `| tee` may be gone: leave all the same
        os.write(descriptor, text.encode())
