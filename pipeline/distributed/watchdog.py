"""Ends all processes of a run if one of them fails, dies or hangs, and lets one process report the reason."""

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

import torch

from pipeline.distributed.processes import Processes
from pipeline.errors import EXIT_FAILURE, PeerError, Preempted, first_line
from pipeline.process.exit import leave_now, siblings
from pipeline.process.world import read_world

_BEAT_S = 1.0
_LATE_S = 5.0  # after this delay of its own thread, a process does not judge the others
_DEAD_S = 15.0  # without a heartbeat
_DEAD_AFTER_BROKEN_CONNECTION_S = 4.0
_SILENT_S = 20.0  # without an answer from the store
_GRACE_S = 4.0  # for the others to end by themselves once one process has failed
_FAILED = "failed"
_DONE = "done"
_RESUME = "The last checkpoint is kept; continue with resume=auto"
# Files in which the main thread waits for the device or for another process: not the process that hangs.
_WAITS = (
    "/torch/autograd/",
    "/torch/distributed/",
    "/torch/cuda/",
    "/pipeline/distributed/gradient_averaging.py",
)


class Watch:
    """Watches the processes of a run. On one process it does nothing.

    A thread of each process publishes a heartbeat and the progress of its main thread, and reads those of the
    other processes. It uses a store, whose connection works while the processes' collectives are stuck.

    As a context manager: an error that leaves the context is this run's error, unless another process has
    failed before. The other processes then end with its exit code.

    Args:
        processes: of the run.
        hang_timeout_s: seconds without progress of any process after which the run is ended; counted from the
            first step on.

    Attributes:
        store: shared by the processes, for this run; None on one process.
    """

    def __init__(self, processes: Processes, hang_timeout_s: float):
        self._rank, self._timeout_s = processes.shard.rank, hang_timeout_s
        self.store = processes.open_store()
        self._main = threading.get_ident()
        self._count, self._place = 0, "setting up"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._dead_s = _DEAD_S
        self._peers = [_Peer() for _ in range(processes.shard.world_size)]
        self._progress: tuple[tuple[int, ...], float] = ((), 0.0)
        self._failed_at: float | None = None

    def at(self, place: str) -> None:
        """Note that the main thread begins something else, in the same order on every process."""
        self._count += 1
        self._place = place

    def __enter__(self) -> "Watch":
        if self.store is not None:
            self._main = threading.get_ident()
            self._publish(0)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.store is None:
            return
        if error is not None and _is_broken_connection(error):
            # the other process has failed and will report it, or it has died, which the thread will see
            self._dead_s = _DEAD_AFTER_BROKEN_CONNECTION_S
            self._wait_for_failure_of_peer(_DEAD_S)
        self._closed.set()
        self._thread.join(_DEAD_S)
        if error is None or isinstance(error, Preempted):
            self.store.set(f"beat/{self._rank}", _DONE)
            return
        rank, code = self._fail(getattr(error, "exit_code", EXIT_FAILURE))
        if rank != self._rank:
            raise PeerError(code) from None

    def _wait_for_failure_of_peer(self, seconds: float) -> None:
        assert self.store is not None
        ends = time.monotonic() + seconds
        try:
            while time.monotonic() < ends and not self.store.check([_FAILED]):
                time.sleep(0.1)
        except RuntimeError:  # the store is lost; the thread will report it
            self._thread.join(seconds)

    def _fail(self, code: int) -> tuple[int, int]:
        """Return rank and exit code of the first failure, which is this one unless another was earlier."""
        assert self.store is not None
        try:
            rank, code = map(int, self.store.compare_set(_FAILED, "", f"{self._rank} {code}").split())
        except RuntimeError:  # the store is gone with the process that kept it
            return self._rank, code
        return rank, code

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        number, last = 0, time.monotonic()
        while not self._closed.wait(_BEAT_S):
            now = time.monotonic()
            if now - last > _LATE_S:  # this process itself was stopped or starved: do not judge the others
                self._forget(now)
            number, last = number + 1, now
            # torch waits for a silent store as long as TCP does
            answered = threading.Event()
            limit = threading.Thread(target=self._limit_silence, args=(answered,), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started now: this look has no limit
                limit.start()
            try:
                self._publish(number)
                self._check(now)
            except RuntimeError as error:
                if not self._closed.wait(_GRACE_S):
                    reason = first_line(error)
                    self._leave(f"lost its launcher, or the host of the first process ({reason})")
            finally:
                answered.set()

    def _limit_silence(self, answered: threading.Event) -> None:
        """End the process if the store does not answer. A process that was suspended did not wait."""
        # seconds are counted by wake-ups, since the clock runs on in a suspended process
        for _ in range(round(_SILENT_S)):
            if answered.wait(1.0):
                return
        if not self._closed.is_set():
            silence = f"no answer for {_SILENT_S:.0f} s"
            self._leave(f"{silence} from its launcher, or from the host of the first process")

    def _leave(self, problem: str) -> NoReturn:
        leave_now(EXIT_FAILURE, f"error: process {self._rank}: {problem}. {_RESUME}")

    def _forget(self, now: float) -> None:
        for peer in self._peers:
            peer.beat_at = now
        self._progress = (self._progress[0], now)

    def _publish(self, number: int) -> None:
        """Write a heartbeat to the store: its number, the process id, and the place of the main thread."""
        assert self.store is not None
        frame = sys._current_frames().get(self._main)
        file, line = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)
        place = f"{self._place}, at {'/'.join(file.split('/')[-2:])}:{line}"
        waits = int(_waits_in(file))
        self.store.set(f"beat/{self._rank}", f"{number}|{os.getpid()}|{self._count}|{waits}|{place}")

    def _check(self, now: float) -> None:
        """Read the heartbeats of all processes; end the run if one has failed, died or hung."""
        assert self.store is not None
        keys = [f"beat/{rank}" for rank in range(len(self._peers))]
        if self.store.check([_FAILED]):
            self._failed_at = self._failed_at or now
            if now > self._failed_at + _GRACE_S:
                leave_now(self._fail(EXIT_FAILURE)[1])
        if self._failed_at is not None or not self.store.check(keys):
            return
        for peer, value in zip(self._peers, self.store.multi_get(keys), strict=True):
            peer.update(value.decode(), now)
        for rank, peer in enumerate(self._peers):
            if peer.beat != _DONE and now > peer.beat_at + self._dead_s:
                return self._end(
                    f"process {rank} has not responded for {self._dead_s:.0f} s (last seen {peer.place}); it "
                    "was probably killed (out of memory?), or its host is down",
                    [rank],
                )
        counts = tuple(peer.count for peer in self._peers)
        if counts != self._progress[0] or min(counts) == 0:
            self._progress = (counts, now)
        elif now > self._progress[1] + self._timeout_s:
            ranks = _hanging(self._peers, now)
            self._end(_describe_hang(self._peers, ranks, self._timeout_s), ranks)

    def _end(self, message: str, ranks: list[int]) -> None:
        """End the run because of these ranks, unless another failure was earlier."""
        rank, code = self._fail(EXIT_FAILURE)
        if rank != self._rank:
            self._closed.wait(_BEAT_S)  # let that process print its message: as soon as one dies, all end
        self._kill([hangs for hangs in ranks if hangs != rank])
        if rank == self._rank:
            leave_now(code, f"error: {message}. {_RESUME}")
        self._failed_at = self._failed_at or time.monotonic()

    def _kill(self, ranks: list[int]) -> None:
        """Kill the ranks of this host: torchrun would wait 30 s for the end of a suspended process."""
        here = read_world().local_ranks
        pids = {self._peers[rank].pid for rank in ranks if rank in here and rank != self._rank}
        for pid in pids & siblings():  # not a process that has got the id of one that is gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass
class _Peer:
    """Holds the last heartbeat of a process.

    Attributes:
        beat: text of the heartbeat.
        beat_at: time at which the text was new.
        pid: process id.
        count: places that the main thread has passed.
        waits: True if the main thread waits for the device or for another process.
        place: of the main thread.
    """

    beat: str = ""
    beat_at: float = 0.0
    pid: int = 0
    count: int = 0
    waits: bool = False
    place: str = ""

    def update(self, beat: str, now: float) -> None:
        if beat == self.beat:
            return
        self.beat, self.beat_at = beat, now
        if beat != _DONE:
            _, pid, count, waits, self.place = beat.split("|", 4)
            self.pid, self.count, self.waits = int(pid), int(count), bool(int(waits))


def _hanging(peers: list[_Peer], now: float) -> list[int]:
    """Return the ranks without a recent heartbeat, which are suspended.

    Without any, return those that are furthest behind; of those in the same place, the ones that do not wait.
    """
    silent = [rank for rank, peer in enumerate(peers) if peer.beat != _DONE and now > peer.beat_at + _LATE_S]
    if silent:
        return silent
    behind = min((peer.count, peer.waits) for peer in peers)
    return [rank for rank, peer in enumerate(peers) if (peer.count, peer.waits) == behind]


def _describe_hang(peers: list[_Peer], ranks: list[int], timeout_s: float) -> str:
    """Name the processes that hang, and the place of each process."""
    who = f"process {ranks[0]} hangs" if len(ranks) == 1 else f"processes {', '.join(map(str, ranks))} hang"
    places = "; ".join(f"process {rank}: {peer.place}" for rank, peer in enumerate(peers))
    return f"{who}: no progress for {timeout_s:g} s (runtime.hang_timeout_s). {places}"


def _waits_in(file: str) -> bool:
    return any(part in file for part in _WAITS)


def _is_broken_connection(error: BaseException) -> bool:
    """Return True if the error may come from the end of another process: it was raised while waiting for one.

    gloo raises a plain RuntimeError then. An error that has an exit code is ours.
    """
    if hasattr(error, "exit_code") or error.__traceback__ is None:
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    waited = _waits_in(trace.tb_frame.f_code.co_filename)
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and waited)
