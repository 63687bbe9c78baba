"""Ends a process: prints a last message, and skips cleanup."""

import atexit
import contextlib
import os
import sys
from pathlib import Path
from typing import NoReturn, TextIO

from pipeline.process.world import read_world


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


def siblings() -> set[int]:
    """Return the ids of the processes that have the same parent as this one, itself included."""
    parent, found = os.getppid(), set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            # after the name of the program, which may hold spaces and brackets, come its state and its parent
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(int(process.name))
    return found


def peer_has_ended() -> bool:
    """Return True if the launcher of this host has lost another of its processes.

    torchrun then ends the rest by SIGTERM, the signal by which a user stops the run.
    """
    started = read_world().local_size
    return started > 1 and len(siblings()) < started


def leave_now(code: int, message: str | None = None) -> NoReturn:
    """End this process at once, from any thread, even if the main thread is stuck in a call into C.

    Saved files stay valid: a checkpoint is complete or absent.
    """
    if os.isatty(1):
        _write(1, "\x1b[?25h")  # a progress bar hides the cursor
    if message is not None:
        _write(2, f"{message}\n")  # not print: the main thread may hold the lock of sys.stderr
    os._exit(code)


def leave_without_dismantling(code: int) -> NoReturn:
    """End this process after its work: run what is registered for the exit, but do not take the interpreter
    apart, which takes a second or two once torch is imported."""
    atexit._run_exitfuncs()
    flush()
    os._exit(code)


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal or `| tee` may be gone: leave all the same
        os.write(descriptor, text.encode())
