"""Runs some work again and again in a process of its own, which imports only what the work needs.

Python's own pools either copy a process, whose other threads may hold locks at that moment, or import its
main module in each worker, which a script without `if __name__ == "__main__"` does not survive.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

_START = "import sys; sys.path[:] = sys.argv[1:]; from pipeline.process.worker import serve; serve()"
_kept: list["Worker"] = []
_keepers = 0


class WorkerLost(Exception):
    """A worker could not be started, or ended before it answered."""


class Worker:
    """A process that calls functions with the arguments that it is sent.

    It ends when it is closed, or with this process. A signal to the process group, such as that of Ctrl-C,
    does not reach it.

    Raises:
        WorkerLost: the process cannot be started.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-c", _START, *sys.path]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(command, **pipes, process_group=0)
        except OSError as error:
            raise WorkerLost(error.strerror) from None
        self._requests = cast(BinaryIO, self._process.stdin)
        self._answers = cast(BinaryIO, self._process.stdout)
        self._function = b""

    @classmethod
    def take(cls) -> "Worker":
        """Return a worker that `workers_kept` has kept, or a new one.

        Raises:
            WorkerLost: no process can be started.
        """
        with contextlib.suppress(IndexError):
            return _kept.pop()
        return cls()

    def give_back(self) -> None:
        """Keep this worker inside of `workers_kept`; close it elsewhere."""
        if _keepers:
            _kept.append(self)
        else:
            self.close()

    def call(self, function: bytes, argument: object) -> Any:
        """Call a function there, and return what it returns.

        Args:
            function: `pickle.dumps` of a function with one argument, sent once if it stays the same. It must
                not print: the results are on standard output.
            argument: of the function.

        Raises:
            WorkerLost: the process has ended, as it does when the function raises an exception.
        """
        try:
            pickle.dump(None if function == self._function else function, self._requests)
            pickle.dump(argument, self._requests)
            self._requests.flush()
            self._function = function
            return pickle.load(self._answers)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise WorkerLost("it ended") from None

    def close(self) -> None:
        """Let the process end, and wait for it."""
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


@contextmanager
def workers_kept() -> Iterator[None]:
    """Keep workers that are given back, for the next work in this block."""
    global _keepers
    _keepers += 1
    try:
        yield
    finally:
        _keepers -= 1
        while _kept and not _keepers:
            _kept.pop().close()


def serve() -> None:
    """Call functions with the arguments that follow on standard input, until it ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    function: Callable[[object], object] | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            new, argument = pickle.load(requests), pickle.load(requests)
            function = function if new is None else pickle.loads(new)
            assert function is not None
            pickle.dump(function(argument), answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
    os._exit(0)  # at once: whoever closes the worker waits for it
