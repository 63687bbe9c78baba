"""The clock of a run, on a time that the test sets."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from pipeline.data.batch import Batch
from pipeline.training import clock
from pipeline.training.clock import Clock, Window
from tests.tiny import random_batch

CPU = torch.device("cpu")


class Now:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.seconds = 1000.0

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    now = Now()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def steps_of(timer: Clock, now: Now, steps: int, wait_s: float, step_s: float) -> None:
    """Take steps of 8 images in the open window, each after a wait for its batch."""

    def batches() -> Iterator[Batch]:
        for _ in range(steps):
            now.passes(wait_s)
            yield random_batch()

    for _ in timer.timed(batches()):
        now.passes(step_s)
        timer.step(8)


def window(timer: Clock, now: Now, steps: int, wait_s: float, step_s: float) -> Window | None:
    timer.open()
    steps_of(timer, now, steps, wait_s, step_s)
    return timer.close()


def test_a_window(now: Now):
    timer = Clock(CPU)
    result = window(timer, now, steps=4, wait_s=0.1, step_s=0.4)
    assert result is not None and timer.windows == [result]
    figures = (result.images_per_sec, result.step_s, result.data_wait_fraction, result.steps)
    assert figures == pytest.approx((16, 0.5, 0.2, 4))


def test_an_excluded_window_is_training_time_and_not_throughput(now: Now):
    timer = Clock(CPU)
    timer.open()
    timer.exclude_window()
    now.passes(3.0)
    timer.step(8)
    assert timer.close() is None and timer.windows == [] and (timer.train_s, timer.warmup_s) == (3.0, 0.0)
    assert window(timer, now, steps=2, wait_s=0.0, step_s=0.5) in timer.windows


def test_warmup_counts_as_training_time_and_not_as_throughput(now: Now):
    steady = [False, True]
    timer = Clock(CPU, is_steady=lambda: steady.pop(0))
    timer.open()
    assert timer.warming_up
    steps_of(timer, now, 3, 0.0, 10.0)
    assert timer.close() is None
    window(timer, now, 2, 0.0, 0.5)
    assert not timer.warming_up
    assert (timer.warmup_s, timer.train_s) == (30, 31)
    assert timer.throughput().median == 16


def test_warmup_may_begin_again(now: Now):
    timer = Clock(CPU)
    timer.open()
    steps_of(timer, now, 2, 0.0, 0.5)
    timer.begin_warmup()
    assert timer.warming_up and len(timer.windows) == 1
    steps_of(timer, now, 1, 0.0, 10.0)
    with timer.pause() as closed:
        assert closed is None
    assert not timer.warming_up and (timer.warmup_s, timer.train_s) == (10, 11)


def test_pauses_are_not_training(now: Now):
    timer = Clock(CPU)
    timer.open()
    steps_of(timer, now, 2, 0.0, 0.5)
    with timer.pause() as first:
        now.passes(100)
    steps_of(timer, now, 2, 0.0, 0.5)
    second = timer.close()
    assert timer.train_s == 2
    assert (
        first is not None and second is not None and (first.images_per_sec, second.images_per_sec) == (16, 16)
    )


def test_a_window_without_steps_is_none(now: Now):
    timer = Clock(CPU)
    timer.open()
    now.passes(1)
    assert timer.close() is None
    assert timer.windows == []


def test_throughput_weighs_windows_by_their_steps(now: Now):
    timer = Clock(CPU)
    window(timer, now, 1, 0.0, 8.0)  # 1 img/s
    window(timer, now, 18, 0.0, 1.0)  # 8 img/s
    window(timer, now, 1, 0.0, 0.5)  # 16 img/s
    assert timer.throughput().model_dump() == pytest.approx({"median": 8, "p10": 8, "p90": 8, "n": 3})
    assert timer.step_ms() == pytest.approx(1000)
    assert timer.data_wait_fraction() == 0


def test_no_throughput_without_a_steady_window():
    timer = Clock(CPU)
    assert timer.throughput().model_dump() == {"median": None, "p10": None, "p90": None, "n": 0}
    assert (timer.step_ms(), timer.data_wait_fraction()) == (None, None)


def test_it_goes_on_after_a_restart(now: Now):
    timer = Clock(CPU)
    window(timer, now, 2, 0.0, 0.5)
    again = Clock(CPU, timer.state_dict())
    window(again, now, 2, 0.0, 1.0)
    assert (len(timer.windows), len(again.windows), again.train_s) == (1, 2, 3)


def test_the_first_step_is_dated_once(now: Now):
    timer = Clock(CPU)
    assert timer.first_step_at is None
    window(timer, now, 2, 1.0, 0.5)
    assert timer.first_step_at == 1001.5
