"""Tests workers: processes that call functions with what they are sent."""

import importlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.process.worker import Worker, WorkerLost, workers_kept
from tests.patience import PATIENCE_S

PROCESS = pickle.dumps(os.path.exists)
ENVIRONMENT = pickle.dumps(os.getenv)
_ORPHANED = """
import os, pickle
from pipeline.process.worker import Worker
worker = Worker()
print(worker.call(pickle.dumps(os.path.realpath), "/proc/self"), flush=True)
os._exit(0)
"""


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def process_of(worker: Worker) -> int:
    return int(worker.call(pickle.dumps(os.path.realpath), "/proc/self").rpartition("/")[2])


def test_functions_are_called_in_turn_in_one_other_process(worker: Worker) -> None:
    assert worker.call(PROCESS, "/proc") is True
    assert worker.call(PROCESS, "/nowhere") is False
    assert worker.call(ENVIRONMENT, "PATH") == os.environ["PATH"]
    assert worker.call(PROCESS, "/proc") is True
    assert process_of(worker) == process_of(worker) != os.getpid()


def test_a_worker_imports_from_where_this_process_does(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.call(pickle.dumps(type(sys.path)), sys.path) == sys.path
    (tmp_path / "elsewhere.py").write_text("def work(x): return x + 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = importlib.import_module("elsewhere")

    other = Worker()
    assert other.call(pickle.dumps(elsewhere.work), 1) == 2
    other.close()


def test_a_signal_to_the_group_does_not_reach_it(worker: Worker) -> None:
    assert os.getpgid(process_of(worker)) != os.getpgrp()


def test_a_function_that_fails_loses_the_worker(worker: Worker) -> None:
    with pytest.raises(WorkerLost):
        worker.call(pickle.dumps(int), "x")
    with pytest.raises(WorkerLost):
        worker.call(pickle.dumps(int), "1")


def test_kept_workers_are_used_again_and_closed_at_the_end() -> None:
    with workers_kept():
        with workers_kept():
            first = Worker.take()
            process = process_of(first)
            first.give_back()
        assert Worker.take() is first
        first.give_back()
    assert not psutil.pid_exists(process)
    second = Worker.take()
    process = process_of(second)
    second.give_back()
    assert not psutil.pid_exists(process)


def test_it_ends_with_the_process_that_started_it() -> None:
    code = [sys.executable, "-c", _ORPHANED]
    parent = subprocess.run(code, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    process, deadline = int(parent.stdout.rpartition("/")[2]), time.monotonic() + PATIENCE_S
    while psutil.pid_exists(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(process)


def test_what_a_function_prints_is_no_answer(worker: Worker) -> None:
    assert worker.call(pickle.dumps(print), "N.") is None
    assert worker.call(PROCESS, "/proc") is True


def test_a_lost_worker_is_not_kept(worker: Worker) -> None:
    with workers_kept():
        with pytest.raises(WorkerLost):
            worker.call(pickle.dumps(int), "x")
        worker.give_back()
        other = Worker.take()
        assert other is not worker
        other.give_back()


@pytest.mark.parametrize("entries", [["with\0nul"], [Path("no text")]])
def test_odd_entries_of_the_path_are_left_out(entries: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, *entries])
    worker = Worker()
    assert worker.call(PROCESS, "/proc") is True
    worker.close()


def test_a_python_that_cannot_be_started_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(WorkerLost):
        Worker()


def test_it_ends_quietly_if_the_request_is_cut_off() -> None:
    """As when the process that asks is killed."""
    request = pickle.dumps(PROCESS) + pickle.dumps("x" * 1000)
    for length in (0, 3, len(request) // 2, len(request) - 1):
        code = [sys.executable, "-c", "from pipeline.process.worker import serve; serve()"]
        ran = subprocess.run(
            code, input=request[:length], capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert (ran.returncode, ran.stderr, ran.stdout) == (0, b"", b"")
