"""Stops a run at SIGTERM or SIGINT."""

import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_PREEMPTED
from pipeline.process.command_line import same_command
from pipeline.process.exit import leave_now, peer_has_ended
from pipeline.process.world import rank_on_host

if TYPE_CHECKING:
    from torch.distributed import Store

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
# a scheduler that signals a whole job reaches each process twice: directly, and through the launcher
_ECHO_S = 2.0
_KEY = "stop"


def name_of(number: int) -> str:
    """Return the name of a signal.

    >>> name_of(15)
    'SIGTERM'
    """
    return signal.Signals(number).name


class StopSignal:
    """SIGTERM or SIGINT asks the run to stop at the next step; a second signal ends the process at once.

    A second signal within 2 s counts as an echo of the first. A thread listens to signals too: Python runs no
    handler while the main thread is in a call into C, such as one that waits for another process.

    `Trainer.fit` calls `due` after each step; if it is True, the trainer saves a checkpoint and ends the run.

    Args:
        exits: True in a command: while there is nothing to save, before the first step and after the result,
            a signal ends the process.
    """

    def __init__(self, exits: bool = False) -> None:
        self.requested = False
        self.number = 0
        self._exits = exits
        self._first: float | None = None
        self._idle: tuple[int, str] | None = None
        self._store: Store | None = None
        self._ahead = 0
        self._stop_step: int | None = None
        self._asked = False
        self._undo: list[Any] = []
        again = same_command("resume=auto") or "resume=auto"
        self.idle(EXIT_PREEMPTED, f"before the first step; start again with {again}")

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            receiver, sender = socket.socketpair()
            sender.setblocking(False)
            handlers = {number: signal.signal(number, self._handle) for number in _NUMBERS}
            self._undo = [handlers, signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False), sender]
            threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True).start()
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
        """Let several processes agree on the step to stop at.

        Args:
            store: of this run alone, shared by its processes; None for one process.
            ahead: maximum number of steps that one process may have enqueued before another.
        """
        self._store, self._ahead = store, ahead

    def idle(self, code: int, activity: str) -> None:
        """State that there is nothing to save until the next step: a signal ends the command.

        Args:
            code: exit code of the command.
            activity: end of its message "stopped: by SIGTERM …".
        """
        self._idle = (code, activity)

    def due(self, step: int) -> bool:
        """Return True if the run stops after this step, which has just been enqueued; same on every process.

        The first process that gets a signal writes the number of a later step to the store; no process can
        have reached that step yet. Each process looks for that entry after every step, which takes the host
        about 20 µs. Processes are only a few steps apart, so each one finds the entry before that step.
        """
        self._idle = None
        if self._store is None:
            return self.requested
        if self.requested and not self._asked:
            self._asked = True
            self._store.compare_set(_KEY, "", str(step + self._ahead + 2))
        if self._stop_step is None and self._store.check([_KEY]):
            self._stop_step = int(self._store.get(_KEY))
            assert self._stop_step >= step, f"asked at step {step} to stop at step {self._stop_step}"
        return self._stop_step == step

    def _handle(self, number: int, frame: Any) -> None:
        if not self.requested:
            self.requested, self.number = True, number

    def _listen(self, receiver: socket.socket) -> None:
        with receiver:
            while received := receiver.recv(1):
                if received[0] in _NUMBERS:
                    self._receive(received[0])

    def _receive(self, number: int) -> None:
        if self._first is None:
            self._first = time.monotonic()
            idle = self._idle  # read once: the first step may end at this moment
            if self._exits and idle is not None:
                code, activity = idle
                if code == EXIT_PREEMPTED and (rank_on_host() > 0 or peer_has_ended()):
                    leave_now(128 + number)  # the first process of the host, or the launcher, says why
                leave_now(code, f"stopped: by {name_of(number)} {activity}")
        elif time.monotonic() > self._first + _ECHO_S:
            leave_now(128 + number)
