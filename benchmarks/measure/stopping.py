"""Stops a benchmark at SIGTERM as at Ctrl-C, and with it all processes that it has started."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType
from typing import Any

import psutil

PATIENCE_S = 0.5  # Ctrl-C ends this process after 1 s, and results are printed before


class SigtermAsCtrlC:
    """Within its context, the first SIGTERM raises KeyboardInterrupt, and later ones do nothing.

    `timeout` sends SIGTERM, often twice. Enter the context in the main thread.

    Attributes:
        came: True if there was a SIGTERM.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None
        self._process = os.getpid()

    def __enter__(self) -> "SigtermAsCtrlC":
        self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process, such as a worker of a loader, ends silently
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.came:
            self.came = True
            raise KeyboardInterrupt


def stop_tree(process: "subprocess.Popen[Any]") -> None:
    """Ask a process to stop, and after a moment kill it and all its descendants.

    launch.sh passes the request on, accelerate's launcher of one process does not. Descendants may have a
    session of their own.
    """
    tree = []
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
    process.kill()
    for descendant in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()


def run_to_end(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command; if this process is interrupted, stop it with all that it has started.

    Args:
        command: its words.
        options: of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, text=True, **options)
    try:
        printed, errors = process.communicate()
    except BaseException:
        stop_tree(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        raise
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)
