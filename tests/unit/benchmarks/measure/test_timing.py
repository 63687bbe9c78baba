"""Checks the rounds of a measurement: the time left is shown, and complete rounds survive Ctrl-C."""

import argparse
from typing import Any, cast

import pytest
import torch

from benchmarks.measure import session as sessions
from benchmarks.measure import timing
from benchmarks.measure.session import Session
from benchmarks.measure.timing import StoppedEarly, Workload, time_interleaved

CPU = torch.device("cpu")


class Counted(Workload):
    """Counts its windows; Ctrl-C comes in one of them."""

    def __init__(self, name: str, stops_in: int = -1):
        super().__init__(name, images_per_step=8, lead_in=1)
        self.windows, self._stops_in = 0, stops_in

    def prepare(self) -> None:
        self.windows += 1

    def run(self, steps: int) -> None:
        if self.windows == self._stops_in:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stops_in", [3, 4])
def test_complete_rounds_are_kept(stops_in: int):
    """The first window of each workload is its warm-up."""
    timings = time_interleaved([Counted("a"), Counted("b", stops_in)], 5, 2, CPU)
    assert [len(timing.step_s) for timing in timings] == [stops_in - 2, stops_in - 2]


@pytest.mark.parametrize(("stops_in", "timed"), [(1, []), (2, ["a"])])
def test_without_a_complete_round_the_windows_are_kept(stops_in: int, timed: list[str]):
    with pytest.raises(StoppedEarly) as stopped:
        time_interleaved([Counted("a"), Counted("b", stops_in)], 5, 2, CPU)
    assert [timing.name for timing in stopped.value.timings] == timed
    assert all(len(timing.step_s) == 1 for timing in stopped.value.timings)


def test_a_session_prints_the_windows_of_a_first_round(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(KeyboardInterrupt):
        a_session().time([Counted("a"), Counted("b", stops_in=2)])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "first round" in line and "a " in line and "images/sec" in line


def test_each_window_is_announced_with_the_time_left():
    lines: list[str] = []
    time_interleaved([Counted("a"), Counted("b")], 2, 1, CPU, lines.append)
    assert lines[:2] == ["warming up, 1 of 2: a", "warming up, 2 of 2: b"]
    assert lines[2:] == [f"round {n} of 2: {name}, left 0:00" for n in (1, 2) for name in "ab"]


class Slow(Workload):
    """Takes a second a step, by a clock of its own."""

    clock = 0.0

    def __init__(self, name: str, step_s: float):
        super().__init__(name, images_per_step=8, lead_in=1)
        self._step_s = step_s

    def run(self, steps: int) -> None:
        Slow.clock += steps * self._step_s


def test_the_time_left_is_that_of_each_workload(monkeypatch: pytest.MonkeyPatch):
    """A loader alone may be a thousand times as fast as a step: the pace so far says nothing."""
    monkeypatch.setattr(timing, "time", argparse.Namespace(perf_counter=lambda: Slow.clock))
    lines: list[str] = []
    time_interleaved([Slow("a", 0.001), Slow("b", 10.0)], 2, 5, CPU, lines.append)
    # a window of b is five steps, and one that is not timed
    assert [line.partition(", left ")[2] for line in lines[2:]] == ["2:00", "2:00", "1:00", "1:00"]


def a_session() -> Session:
    options = argparse.Namespace(windows=5, steps=1, quick=False)
    processes: Any = argparse.Namespace(device=CPU, is_main=True)
    console: Any = argparse.Namespace(print=lambda text, **_: print(text))
    return Session("recipe", [], processes, options, "command", cast(Any, console))


def test_without_a_terminal_some_rounds_get_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = iter([100.0, 101.0, 102.0, 111.0])
    monkeypatch.setattr(sessions.time, "monotonic", lambda: next(clock))
    session = a_session()
    for line in ("round 1", "round 2", "building", "round 3"):
        session.show(line)
    assert capsys.readouterr().out.splitlines() == ["round 1", "building"]


def test_nothing_new_begins_after_ctrl_c(capsys: pytest.CaptureFixture[str]):
    session = a_session()
    assert len(session.time([Counted("a", 4)])[0].step_s) == 2
    assert "stopped after 2 of 5 rounds" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        session.show("building the next one")
