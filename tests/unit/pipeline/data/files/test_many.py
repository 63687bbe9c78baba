"""Tests work on many items, in threads and in processes."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.data.files import many
from pipeline.data.files.many import Portable, try_all
from tests.cores import set_cores
from tests.patience import PATIENCE_S

COUNT = 40


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few items be enough for processes."""
    set_cores(monkeypatch, 4)
    monkeypatch.setattr(many, "_LEAST_SHARE", 4)
    monkeypatch.setattr(many, "_SENT", 3)
    monkeypatch.setattr(many, "_QUICK_S", PATIENCE_S)


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def process_of(item: int) -> int:
    if item == 9:
        raise ValueError("a bad item")
    if item == 10:
        warnings.warn("an odd item", UserWarning, stacklevel=1)
    return os.getpid()


def killed_at_20(item: int) -> int:
    if item == 20 and os.environ["TEST_PARENT"] != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize(("item_s", "chunk_size", "most"), [(0.0, 4, 2), (0.1, 4, 6), (0.0, 1, 6)])
def test_quick_items_get_two_threads(
    item_s: float, chunk_size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would fight for Python's lock. The first item may take long: it imports a decoder."""
    monkeypatch.setattr(many, "_QUICK_S", 0.09)
    threads: set[int] = set()
    together = threading.Barrier(most)

    def work(item: int) -> None:
        if item < 8 and (seconds := 0.1 if item == 0 else item_s):
            time.sleep(seconds)
        if item >= 8 and threading.get_ident() not in threads:  # after those that are timed
            threads.add(threading.get_ident())
            together.wait(PATIENCE_S)
        if item == 9:
            raise ValueError("a bad item")

    assert try_all(range(60), work, 6, "working", chunk_size) == {9: "a bad item"}
    assert len(threads) == most


@pytest.mark.usefixtures("four_cores")
def test_quick_work_that_can_be_pickled_is_done_in_processes() -> None:
    results: dict[int, Any] = {}
    options: dict[str, Any] = {"portable": Portable(results.__setitem__), "within": warnings_are_errors}
    failed = try_all(range(COUNT), process_of, 3, "working", **options)
    assert failed == {9: "a bad item", 10: "an odd item"}
    assert sorted(results) == [item for item in range(COUNT) if item not in failed]
    elsewhere = {process for item, process in results.items() if item >= 8}  # after those that are timed
    assert os.getpid() not in elsewhere and 1 <= len(elsewhere) <= 3


@pytest.mark.usefixtures("four_cores")
def test_a_process_gets_the_tasks_of_its_items_alone() -> None:
    results: dict[int, Any] = {}
    portable = Portable(results.__setitem__, lambda item: f"item {item}", most=2)
    assert not try_all(range(COUNT), str.upper, 8, "working", portable=portable)
    assert results == {item: f"ITEM {item}" for item in range(COUNT)}


@pytest.mark.usefixtures("four_cores")
def test_slow_work_and_work_on_few_cores_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_QUICK_S", 0.0), ("_FEW_CORES", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(many, name, value)
            processes: dict[int, int] = {}
            try_all(range(COUNT), process_of, 4, "working", portable=Portable(processes.__setitem__))
            assert set(processes.values()) == {os.getpid()}


@pytest.mark.parametrize(
    ("items", "most", "expected"), [(100_000, 32, 8), (100_000, 3, 3), (5000, 8, 2), (100, 8, 1)]
)
def test_no_more_processes_than_pay(
    items: int, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_cores(monkeypatch, 16)
    assert many._num_processes(items, most) == expected


@pytest.mark.usefixtures("four_cores")
def test_one_thread_is_one_process() -> None:
    processes: dict[int, int] = {}
    try_all(range(COUNT), process_of, 1, "working", portable=Portable(processes.__setitem__))
    assert set(processes.values()) == {os.getpid()}


@pytest.mark.usefixtures("four_cores")
def test_what_a_lost_process_should_have_done_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_PARENT", str(os.getpid()))
    results: dict[int, int] = {}
    assert not try_all(range(COUNT), killed_at_20, 2, "working", portable=Portable(results.__setitem__))
    assert results == {item: item for item in range(COUNT)}


@pytest.mark.usefixtures("four_cores")
def test_without_processes_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    processes: dict[int, int] = {}
    failed = try_all(range(COUNT), process_of, 4, "working", portable=Portable(processes.__setitem__))
    assert len(processes) + len(failed) == COUNT and set(processes.values()) == {os.getpid()}
