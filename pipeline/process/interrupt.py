"""Ends a command at Ctrl-C or SIGTERM with one word and exit code 130, also in imports and calls into C."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pipeline.errors import EXIT_INTERRUPTED
from pipeline.process.exit import flush, leave_now

_GRACE_S = 1.0  # for the main thread to leave what it does and to remove temporary files
_ECHO_S = 0.5  # `timeout` signals the process and then its group: a second signal in this time is the first
_STOPPING = "stopping: the results so far follow; Ctrl-C once more ends at once\n"
_current: "_Interrupt | None" = None


def _is_importing(frame: FrameType | None) -> bool:
    """Return True inside an import: it leaves no files, and an exception may make a library abort."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def stopped_by_interrupt(*, at_sigterm: bool = False) -> Iterator[None]:
    """Within the context, SIGINT ends the process: "stopped" on stderr, exit code 130, and no traceback.

    The main thread gets a `KeyboardInterrupt`, so that it removes temporary files; only inside an import the
    process ends at once. What the main thread then prints to stderr is dropped, because libraries turn that
    exception into others, or print it. If it has not left after 1 s, because it is in a call into C or
    something caught the exception, the process ends all the same. `keep_results` gives it more time.

    Code inside may handle SIGINT itself, as `StopSignal` does. A process that ignores SIGINT, as in the
    background of a shell script, still does. Call this in the main thread.

    Args:
        at_sigterm: SIGTERM does the same. Not for one of several processes: their launcher ends those that
            are left by SIGTERM when one has failed.
    """
    global _current
    wanted = (signal.SIGINT, signal.SIGTERM) if at_sigterm else (signal.SIGINT,)
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    if not numbers:
        yield
        return
    interrupt = _current = _Interrupt(numbers)
    try:
        yield
    finally:
        interrupt.work_has_ended()


def keep_results() -> None:
    """From now on, a signal leaves the main thread the time that it needs to show the results so far.

    A second Ctrl-C, heard half a second after the first one or later, ends the process at once. Does nothing
    outside of `stopped_by_interrupt`.
    """
    if _current is not None:
        _current.is_patient = True


class _Interrupt:
    """Handles signals in the main thread, and listens to them in a thread of its own.

    Attributes:
        is_patient: True if the main thread gets as long as it needs.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.is_patient = False
        self._numbers = numbers
        self._received = self._raised = self._ended = False
        self._printing = threading.Lock()
        self._stderr = os.dup(2)
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        for number in numbers:
            signal.signal(number, self._handle)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(receiver,), name="interrupt", daemon=True).start()
        os.register_at_fork(after_in_child=self._forget)

    def work_has_ended(self) -> None:
        """End the process if a signal has come, whatever has become of the exception; later, end it at
        once."""
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
        heard_at: float | None = None
        while received := os.read(receiver, 1):
            number = received[0]
            if not self._handles(number):
                continue
            again = heard_at is not None and time.monotonic() > heard_at + _ECHO_S
            self._receive()
            if not self.is_patient or self._ended or (again and number != signal.SIGTERM):
                time.sleep(0 if self._ended or again else _GRACE_S)
                self._leave()
            if heard_at is None:
                heard_at = time.monotonic()
                os.write(self._stderr, _STOPPING.encode())

    def _handles(self, number: int) -> bool:
        return number in self._numbers and signal.getsignal(number) == self._handle

    def _receive(self) -> None:
        if not self._received:
            self._received = True
            if os.isatty(self._stderr):
                os.write(self._stderr, b"\r\x1b[2K")  # over a progress bar
            with open(os.devnull, "w") as devnull:
                os.dup2(devnull.fileno(), 2)

    def _leave(self) -> NoReturn:
        self._printing.acquire()  # for good: one thread prints
        os.dup2(self._stderr, 2)
        leave_now(EXIT_INTERRUPTED, "stopped")

    def _forget(self) -> None:
        """Let a forked process, such as a worker of a loader, end silently."""
        for number in filter(self._handles, self._numbers):
            signal.set_wakeup_fd(-1)
            signal.signal(number, signal.SIG_DFL)
