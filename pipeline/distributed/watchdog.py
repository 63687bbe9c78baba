"""Watch over the processes of a run: one that fails, dies or hangs ends all of them, and one of them says why."""

import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType

import torch

from pipeline.distributed.processes import Processes
from pipeline.errors import EXIT_FAILURE, PeerError, Preempted
from pipeline.process.exit import leave_now

_BEAT_S = 1.0
_DEAD_S = 15.0  # without a heartbeat
_DEAD_AFTER_BROKEN_CONNECTION_S = 4.0
_SILENT_S = 20.0  # without an answer from the store
_GRACE_S = 4.0  # for the others to end by themselves once one has failed
_FAILED = "failed"
_DONE = "done"
# Where the main thread waits for the device or for another process, and so is not the one that hangs.
_WAITS = (
    "/torch/autograd/",
    "/torch/distributed/",
    "/torch/cuda/",
    "/pipeline/distributed/gradient_averaging.py",
)
_BROKEN = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")


@dataclass
class _Sight:
    """What was last heard of a process, and when that changed."""

    beat: str = ""
    beat_at: float = 0.0
    count: int = 0
    waits: bool = False
    place: str = ""


class Watch:
    """A thread of each process publishes a heartbeat and how far its main thread has come, and reads those of the others.

    What it needs is a store, which is connected apart from the processes' collectives and goes on where those are stuck. A second thread
    ends the process where the store's host falls silent, for which torch would wait as long as TCP does. On one process it does nothing.
    As a context: an error that leaves it is this run's, if no other process has failed before; the others are told to end with its exit
    code.

    Args:
        processes: of the run.
        hang_timeout_s: seconds without progress of any process after which the run is ended; counted from the first step on.

    Attributes:
        store: the processes' own, for this run; None on one process.
    """

    def __init__(self, processes: Processes, hang_timeout_s: float):
        self._rank, self._world_size = processes.shard.rank, processes.shard.world_size
        self._timeout_s = hang_timeout_s
        self.store = processes.open_store()
        self._main = threading.get_ident()
        self._count, self._place = 0, "setting up"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._beats = 0
        self._dead_s = _DEAD_S
        self._sights = [_Sight() for _ in range(self._world_size)]
        self._progress: tuple[tuple[int, ...], float] = ((), 0.0)
        self._failed_at: float | None = None

    def at(self, place: str) -> None:
        """The main thread goes on to something else, in the same order on every process."""
        self._count += 1
        self._place = place

    def __enter__(self) -> "Watch":
        if self.store is not None:
            self._main = threading.get_ident()
            self._beat(0)
            self._thread.start()
            threading.Thread(target=self._guard, name="watch of the store", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.store is None:
            return
        if error is not None and _is_broken_connection(error):
            # the other one has failed, and says so, or has died, which the thread will see
            self._dead_s = _DEAD_AFTER_BROKEN_CONNECTION_S
            self._wait_for_another_s_failure(_DEAD_S)
        self._closed.set()
        self._thread.join(_DEAD_S)
        if error is None or isinstance(error, Preempted):
            self.store.set(f"beat/{self._rank}", _DONE)
            return
        rank, code = self._fail(getattr(error, "exit_code", EXIT_FAILURE))
        if rank != self._rank:
            raise PeerError(code) from None

    def _wait_for_another_s_failure(self, seconds: float) -> None:
        assert self.store is not None
        ends = time.monotonic() + seconds
        try:
            while time.monotonic() < ends and not self.store.check([_FAILED]):
                time.sleep(0.1)
        except RuntimeError:  # the store is lost, of which the thread will speak
            self._thread.join(seconds)

    def _fail(self, code: int) -> tuple[int, int]:
        """Who has failed first, and with which exit code: this process, unless another has been faster."""
        assert self.store is not None
        try:
            rank, code = map(int, self.store.compare_set(_FAILED, "", f"{self._rank} {code}").split())
        except RuntimeError:  # the store is gone with the process that kept it
            return self._rank, code
        return rank, code

    # --- the threads --------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(_BEAT_S):
            now = time.monotonic()
            self._beats += 1
            if (
                now - looked > 5 * _BEAT_S
            ):  # this process itself was stopped, or starved: it cannot judge the others
                self._forget(now)
            looked = now
            try:
                self._look(self._beats, now)
            except RuntimeError as error:
                if not self._closed.wait(_GRACE_S):
                    where = "its launcher, or the host of the first process"
                    told = f"error: process {self._rank}: lost {where} ({str(error).splitlines()[0]})"
                    leave_now(EXIT_FAILURE, told)

    def _guard(self) -> None:
        """Counts its own beats, not seconds: a process that was stopped itself has not waited."""
        beats, silent = 0, 0
        while not self._closed.wait(_BEAT_S):
            beats, silent = self._beats, silent + 1 if self._beats == beats else 0
            if silent * _BEAT_S > _SILENT_S:
                told = f"no answer for {_SILENT_S:.0f} s from its launcher, or from the host of the first process"
                leave_now(
                    EXIT_FAILURE,
                    f"error: process {self._rank}: {told}. The last checkpoint is kept: continue with resume=auto",
                )

    def _forget(self, now: float) -> None:
        for sight in self._sights:
            sight.beat_at = now
        self._progress = (self._progress[0], now)

    def _look(self, beat: int, now: float) -> None:
        assert self.store is not None
        self._beat(beat)
        keys = [f"beat/{rank}" for rank in range(self._world_size)]
        if self.store.check([_FAILED]):
            self._failed_at = self._failed_at or now
            if now > self._failed_at + _GRACE_S:
                leave_now(self._fail(EXIT_FAILURE)[1])
        if self._failed_at is not None or not self.store.check(keys):
            return
        for sight, value in zip(self._sights, self.store.multi_get(keys), strict=True):
            _update(sight, value.decode(), now)
        dead = [
            rank
            for rank, sight in enumerate(self._sights)
            if sight.beat != _DONE and now > sight.beat_at + self._dead_s
        ]
        if dead:
            self._end(
                f"process {dead[0]} gives no sign of life for {self._dead_s:.0f} s, last seen {self._sights[dead[0]].place}. Killed, "
                "perhaps for want of memory, or its host is gone"
            )
        counts = tuple(sight.count for sight in self._sights)
        if counts != self._progress[0] or min(counts) == 0:
            self._progress = (counts, now)
        elif now > self._progress[1] + self._timeout_s:
            self._end(_describe_hang(self._sights, self._timeout_s))

    def _beat(self, number: int) -> None:
        assert self.store is not None
        frame = sys._current_frames().get(self._main)
        file, line = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)
        waits = any(part in file for part in _WAITS)
        place = f"{self._place}, at {'/'.join(file.split('/')[-2:])}:{line}"
        self.store.set(f"beat/{self._rank}", f"{number}|{self._count}|{int(waits)}|{place}")

    def _end(self, message: str) -> None:
        rank, code = self._fail(EXIT_FAILURE)
        if rank == self._rank:
            leave_now(code, f"error: {message}. The last checkpoint is kept: continue with resume=auto")
        self._failed_at = self._failed_at or time.monotonic()


def _update(sight: _Sight, value: str, now: float) -> None:
    if value == sight.beat:
        return
    sight.beat, sight.beat_at = value, now
    if value != _DONE:
        _, count, waits, sight.place = value.split("|", 3)
        sight.count, sight.waits = int(count), bool(int(waits))


def _describe_hang(sights: list[_Sight], timeout_s: float) -> str:
    """Name the process that is furthest behind; of those in the same place, the one that does not wait for others."""
    behind = min((sight.count, sight.waits) for sight in sights)
    ranks = [rank for rank, sight in enumerate(sights) if (sight.count, sight.waits) == behind]
    who = f"process {ranks[0]} hangs" if len(ranks) == 1 else f"processes {', '.join(map(str, ranks))} hang"
    places = "; ".join(f"process {rank}: {sight.place}" for rank, sight in enumerate(sights))
    return f"{who}: no progress for {timeout_s:g} s (runtime.hang_timeout_s). {places}"


def _is_broken_connection(error: BaseException) -> bool:
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError)
        and not hasattr(error, "exit_code")
        and any(word in str(error) for word in _BROKEN)
    )
