"""Time as an object, on a clock that the test turns."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.training import clock
from pipeline.training.clock import Clock

CPU = torch.device("cpu")


class Now:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.seconds = 1000.0

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    now = Now()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def window(
    timer: Clock, now: Now, steps: int, wait_s: float, step_s: float, images: int = 8, steady: bool = True
) -> dict | None:
    timer.start(steady)
    for _ in range(steps):
        timer.ask()
        now.passes(wait_s)
        timer.arrived()
        now.passes(step_s)
        timer.step(images)
    return timer.close()


def test_a_window(now: Now):
    timer = Clock(CPU)
    found = window(timer, now, steps=4, wait_s=0.1, step_s=0.4)
    assert found == pytest.approx(
        {"images_per_sec": 16, "step_s": 0.5, "data_wait_fraction": 0.2, "steps": 4}
    )
    assert timer.windows == [found]


def test_a_spoilt_window_is_training_time_and_not_speed(now: Now):
    timer = Clock(CPU)
    timer.start(steady=True)
    timer.spoil()
    now.passes(3.0)
    timer.step(8)
    assert timer.close() is None and timer.windows == [] and (timer.train_s, timer.warmup_s) == (3.0, 0.0)
    assert window(timer, now, steps=2, wait_s=0.0, step_s=0.5) in timer.windows


def test_warmup_counts_as_training_time_and_not_as_speed(now: Now):
    timer = Clock(CPU)
    timer.start(steady=False)
    assert timer.warming_up
    assert window(timer, now, 3, 0.0, 10.0, steady=False) is None
    window(timer, now, 2, 0.0, 0.5)
    assert not timer.warming_up
    assert (timer.warmup_s, timer.train_s) == (30, 31)
    assert timer.summary()["images_per_sec"]["median"] == 16


def test_pauses_are_not_training(now: Now):
    timer = Clock(CPU)
    window(timer, now, 2, 0.0, 0.5)
    with timer.pause():
        now.passes(100)
    window(timer, now, 2, 0.0, 0.5)
    assert timer.train_s == 2
    assert [item["images_per_sec"] for item in timer.windows] == [16, 16]


def test_a_window_without_steps_is_none(now: Now):
    timer = Clock(CPU)
    timer.start(steady=True)
    now.passes(1)
    assert timer.close() is None
    assert timer.windows == []


def test_summary_weighs_windows_by_their_steps(now: Now):
    timer = Clock(CPU)
    window(timer, now, 1, 0.0, 8.0)  # 1 img/s
    window(timer, now, 18, 0.0, 1.0)  # 8 img/s
    window(timer, now, 1, 0.0, 0.5)  # 16 img/s
    summary = timer.summary()
    assert summary["images_per_sec"] == pytest.approx({"median": 8, "p10": 8, "p90": 8, "n": 3})
    assert summary["step_ms"] == pytest.approx(1000)
    assert summary["data_wait_fraction"] == 0


def test_summary_of_nothing():
    nothing = {"median": None, "p10": None, "p90": None, "n": 0}
    assert Clock(CPU).summary() == {"images_per_sec": nothing, "step_ms": None, "data_wait_fraction": None}


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
