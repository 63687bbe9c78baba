"""What SIGTERM and SIGINT do to a run."""

import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_PREEMPTED
from pipeline.process.exit import announce, failed_beside_this, leave_now, rank

if TYPE_CHECKING:
    from torch.distributed import Store

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_ECHO_S = 2.0  # where a scheduler signals a whole job, each process gets one from there and one through the launcher
_KEY = "stop"


class StopSignal:
    """SIGTERM or SIGINT asks the run to stop at the next step; a second one, later than an echo, ends the process at once.

    A thread hears of signals too: Python runs no handler while the main thread is in a call into C, such as one that waits for another
    process.

    Args:
        exits: in a command: where there is nothing to save, before the first step and after the result, a signal ends the process.
    """

    def __init__(self, exits: bool = False) -> None:
        self.requested = False
        self.number = 0
        self._exits = exits
        self._first: float | None = None
        self._idle: tuple[int, str] | None = None
        self._store: Store | None = None
        self._ahead = 0
        self._at: int | None = None
        self._asked = False
        self._undo: list[Any] = []
        self.idle(EXIT_PREEMPTED, "before the first step; start again with resume=auto")

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            receiver, sender = socket.socketpair()
            sender.setblocking(False)
            handlers = {number: signal.signal(number, self._handle) for number in _NUMBERS}
            self._undo = [handlers, signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False), sender]
            threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True).start()
            if self._exits:
                announce()
        return self

    def __exit__(self, *_: object) -> None:
        if self._undo:
            handlers, wakeup, sender = self._undo
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sender.close()  # which ends the thread
            self._undo = []

    def agree_through(self, store: "Store | None", ahead: int) -> None:
        """With several processes: let them agree on the step to stop at.

        Args:
            store: of this run alone, shared by its processes.
            ahead: steps that a process may have enqueued more than another.
        """
        self._store, self._ahead = store, ahead

    def idle(self, code: int, doing: str) -> None:
        """Until the next step there is nothing to save: a signal ends the command with this exit code and word."""
        self._idle = (code, doing)

    def due(self, step: int) -> bool:
        """Whether the run stops after this step, which has just been enqueued. The same answer on every process.

        The first process with a signal names a step that none can have reached. Each looks for that name after every step, which takes
        the host some 20 µs: when it gets there, the one that named it has done steps since, so the name is there to be seen.
        """
        self._idle = None
        if self._store is None:
            return self.requested
        if self.requested and not self._asked:
            self._asked = True
            self._store.compare_set(_KEY, "", str(step + self._ahead + 2))
        if self._at is None and self._store.check([_KEY]):
            self._at = int(self._store.get(_KEY))
            assert self._at >= step, f"asked at step {step} to stop at step {self._at}"
        return self._at == step

    def _handle(self, number: int, frame: Any) -> None:
        if not self.requested:
            self.requested, self.number = True, number

    def _listen(self, receiver: socket.socket) -> None:
        with receiver:
            while received := receiver.recv(1):
                if received[0] in _NUMBERS:
                    self._heard(received[0])

    def _heard(self, number: int) -> None:
        if self._first is None:
            self._first, idle = (
                time.monotonic(),
                self._idle,
            )  # read once: the first step may be done in this moment
            if self._exits and idle is not None:
                code, doing = idle
                failed = failed_beside_this() if code == EXIT_PREEMPTED else None
                leave_now(
                    *(failed or (code, f"stopped: by signal {number} {doing}" if rank() == 0 else None))
                )
        elif time.monotonic() > self._first + _ECHO_S:
            leave_now(128 + number)
