"""Ends a command at Ctrl-C with one word and exit code 130, also during imports and calls into C."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pipeline.errors import EXIT_INTERRUPTED
from pipeline.process.exit import flush, leave_now

_GRACE_S = 1.0  # for the main thread to leave what it does and to remove temporary files


def _is_importing(frame: FrameType | None) -> bool:
    """Return True inside an import: it leaves no files, and an exception may make a library abort."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def stopped_by_interrupt() -> Iterator[None]:
    """Within the context, SIGINT ends the process: "stopped" on stderr, exit code 130, and no traceback.

    The main thread gets a `KeyboardInterrupt`, so that it removes temporary files; only inside an import the
    process ends at once. What the main thread then prints is dropped, because libraries turn that exception
    into others, or print it. If it has not left after 1 s, because it
    is in a call into C or something caught the exception, the process ends all the same.

    Code inside may handle SIGINT itself, as `StopSignal` does. A process that ignores SIGINT, as in the
    background of a shell script, still does. Call this in the main thread.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    interrupt = _Interrupt()
    try:
        yield
    finally:
        interrupt.work_has_ended()


class _Interrupt:
    """Handles SIGINT in the main thread, and listens to it in a thread of its own."""

    def __init__(self) -> None:
        self._received = self._raised = self._ended = False
        self._printing = threading.Lock()
        self._stderr = os.dup(2)
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        signal.signal(signal.SIGINT, self._handle)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(receiver,), name="interrupt", daemon=True).start()
        os.register_at_fork(after_in_child=self._forget)

    def work_has_ended(self) -> None:
        """End the process if SIGINT has come, whatever has become of the exception; later, end it at once."""
        self._ended = True
        if self._received:
            flush()
            self._leave()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._receive()
        if self._ended or _is_importing(frame):
            self._leave()
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _listen(self, receiver: int) -> None:
        while received := os.read(receiver, 1):
            if received[0] == signal.SIGINT and self._is_installed:
                self._receive()
                time.sleep(0 if self._ended else _GRACE_S)
                self._leave()

    @property
    def _is_installed(self) -> bool:
        return signal.getsignal(signal.SIGINT) == self._handle

    def _receive(self) -> None:
        if not self._received:
            self._received = True
            with open(os.devnull, "w") as devnull:
                os.dup2(devnull.fileno(), 2)

    def _leave(self) -> NoReturn:
        self._printing.acquire()  # for good: one thread prints
        os.dup2(self._stderr, 2)
        leave_now(EXIT_INTERRUPTED, "stopped")

    def _forget(self) -> None:
        """Let a forked process, such as a worker of a loader, end silently."""
        if self._is_installed:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
