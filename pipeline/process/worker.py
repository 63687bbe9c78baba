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
        command = [sys.executable, "-c", _START, *filter(_is_plain, sys.path)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(command, **pipes, process_group=0)
        except (OSError, ValueError, TypeError) as error:  # also of a Python that does not know its own path
            raise WorkerLost(str(error)) from None
        self._requests = cast(BinaryIO, self._process.stdin)
        self._answers = cast(BinaryIO, self._process.stdout)
        self._function, self._is_lost = b"", False

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
        """Keep this worker inside of `workers_kept`; close it elsewhere, and if it was lost."""
        if _keepers and not self._is_lost:
            _kept.append(self)
        else:
            self.close()

    def call(self, function: bytes, argument: object) -> Any:
        """Call a function there, and return what it returns.

        Args:
            function: `pickle.dumps` of a function with one argument, sent once if it stays the same.
            argument: of the function.

        Raises:
            WorkerLost: the process has ended, as it does when the function raises an exception.
        """
        request = pickle.dumps(None if function == self._function else function) + pickle.dumps(argument)
        try:
            self._requests.write(request)
            self._requests.flush()
            self._function = function
            return pickle.load(self._answers)
        except Exception as error:  # of any type, if something else was written there as Python started
            self._is_lost = True
            raise WorkerLost(f"no answer ({error})") from None

    def close(self) -> None:
        """End the process, which has nothing to save."""
        self._process.kill()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


def _is_plain(entry: object) -> bool:
    """Return True if an entry of `sys.path` can be an argument of a program."""
    return isinstance(entry, str) and "\0" not in entry


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
    """Call functions with the arguments that follow on standard input, until it ends.

    What the functions print goes to standard error.
    """
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function: Callable[[object], object] | None = None
    while True:
        try:
            new, argument = pickle.load(requests), pickle.load(requests)
        except (EOFError, pickle.UnpicklingError):  # the process that asked is gone, perhaps in the middle
            os._exit(0)
        if new is not None:
            function = pickle.loads(new)
            del new  # its size
        assert function is not None
        result = function(argument)
        try:
            pickle.dump(result, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)
