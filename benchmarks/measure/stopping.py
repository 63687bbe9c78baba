"""Stops all processes that a benchmark has started when it is stopped itself."""

import contextlib
import subprocess
from collections.abc import Sequence
from typing import Any

import psutil

PATIENCE_S = 0.5  # without results, Ctrl-C ends this process after 1 s


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
