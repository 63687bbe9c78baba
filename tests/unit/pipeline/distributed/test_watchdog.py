"""Ends a process whose store gives no answer, and the processes that hang."""

import os
import re
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.distributed import watchdog
from tests.patience import PATIENCE_S
from tests.python import run_python

SCRIPT = """
import threading, time
from types import SimpleNamespace
from pipeline.distributed import watchdog

class Store:
    def check(self, keys):
        threading.Event().wait(SILENT)
        return False
    def set(self, key, value):
        pass

watchdog._BEAT_S, watchdog._SILENT_S = 0.1, 1.0
processes = SimpleNamespace(shard=SimpleNamespace(rank=1, world_size=2), open_store=Store)
with watchdog.Watch(processes, 60.0):
    time.sleep(TRAINS)
print("trained")
"""


@pytest.mark.parametrize(
    ("silent_s", "trains_s", "code", "output", "message"),
    [
        ("0.1", 2.0, 0, "trained", ""),
        ("None", PATIENCE_S, 1, "", "error: process 1: no answer for 1 s .*resume=auto"),
    ],
)
def test_a_store_that_falls_silent(silent_s: str, trains_s: float, code: int, output: str, message: str):
    """As if the host of the store had lost power: the connection does not break."""
    script = SCRIPT.replace("SILENT)", f"{silent_s})").replace("TRAINS", str(trains_s))
    done = run_python("-c", script, check=False)
    assert (done.returncode, done.stdout.strip()) == (code, output), done.stderr
    assert re.fullmatch(message, done.stderr.strip())


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        ([(0.0, 7, True), (0.0, 7, False)], [1]),  # rank 0 waits for rank 1
        ([(0.0, 7, True), (0.0, 6, True)], [1]),  # rank 1 is behind
        ([(0.0, 7, True), (0.0, 7, True)], [0, 1]),
        ([(0.0, 7, True), (6.0, 7, True)], [1]),  # rank 1 is suspended in the backward pass
        ([(0.0, 6, False), (6.0, 7, True)], [1]),
    ],
)
def test_the_processes_that_hang(beats: list[tuple[float, int, bool]], expected: list[int]):
    """Each process has seconds since its last heartbeat, places passed, and whether it waits."""
    now = 100.0
    peers = [
        watchdog._Peer(beat="1|1|1|0|x", beat_at=now - silent_s, count=count, waits=waits)
        for silent_s, count, waits in beats
    ]
    assert watchdog._hanging(peers, now) == expected


@pytest.mark.parametrize(("reporter", "killed"), [(1, [12]), (2, [11]), (0, [11, 12])])
def test_the_process_that_reports_a_hang_lives_until_it_has_told(
    reporter: int, killed: list[int], monkeypatch: pytest.MonkeyPatch
):
    """The thread of a process whose main thread hangs may be the first to see it, and this one the second."""
    store = SimpleNamespace(compare_set=lambda *_: f"{reporter} 1")
    processes: Any = SimpleNamespace(shard=SimpleNamespace(rank=3, world_size=4), open_store=lambda: store)
    watch = watchdog.Watch(processes, 60.0)
    watch._peers = [watchdog._Peer(pid=pid) for pid in (10, 11, 12, 13)]
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: signals.append(call))
    monkeypatch.setattr(watchdog, "_BEAT_S", 0.01)
    monkeypatch.setattr(watchdog, "siblings", lambda: {10, 11, 12, 13})
    monkeypatch.setattr(watchdog, "read_world", lambda: SimpleNamespace(local_ranks=range(4)))
    watch._end("processes 1, 2 hang", [1, 2])
    assert sorted(signals) == [(pid, signal.SIGKILL) for pid in killed]
