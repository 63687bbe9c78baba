"""Checks that the CPU time of other programs is told from this process's own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.process import other_programs
from pipeline.process.other_programs import OtherPrograms

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# on cores 0 and 2 of four: user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice
_BEFORE = {0: [100, 7, 20, 0, 9, 1, 2, 5, 0, 0], 2: [300, 8, 40, 0, 9, 0, 0, 5, 0, 0]}
_SPIN = "while True: pass"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets what the system says: the time, ticks of the two cores, and own seconds."""

    def tell(at_s: float, ticks: dict[int, list[int]], own_s: float) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 0 0 0"]
        lines += [f"cpu{core} {' '.join(map(str, values))}" for core, values in ticks.items()]
        (tmp_path / "stat").write_text("\n".join([*lines, "intr 1 2 3", "ctxt 4", ""]))
        monkeypatch.setattr(time, "monotonic", lambda: at_s)
        monkeypatch.setattr(os, "times", lambda: (own_s / 2, own_s / 4, own_s / 8, own_s / 8, at_s))

    monkeypatch.setattr(other_programs, "_PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    return tell


def _later(core: int, column: int, seconds: float) -> dict[int, list[int]]:
    ticks = {number: list(values) for number, values in _BEFORE.items()}
    ticks[core][column] += round(seconds * _TICKS_PER_S)
    return ticks


@pytest.mark.parametrize(
    ("core", "column", "counts"),
    [(0, 0, True), (2, 2, True), (0, 5, True), (2, 6, True), (0, 1, False), (0, 3, False), (2, 4, False)],
    ids=["user", "system", "irq", "softirq", "nice", "idle", "iowait"],
)
def test_only_work_counts(core: int, column: int, counts: bool, system: Callable[..., None]):
    system(10.0, _BEFORE, 4.0)
    others = OtherPrograms()
    system(14.0, _later(core, column, 2.6), 5.0)  # 2.6 s in 4 s, of which 1 s are its own
    assert others.num_cores() == pytest.approx(0.4 if counts else 0.0)


@pytest.mark.parametrize(("later", "expected"), [(0.0, 0.0), (0.4, 0.4), (1.0, 0.75)])
def test_a_burst_that_has_ended_does_not_count(
    later: float, expected: float, system: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """3 s in 4 s, and then `later` seconds in each second."""

    def sleep(seconds: float) -> None:
        if seconds > 0:
            system(14.0 + seconds, _later(0, 0, 3.0 + later * seconds), 4.0)

    monkeypatch.setattr(time, "sleep", sleep)
    system(10.0, _BEFORE, 4.0)
    others = OtherPrograms()
    system(14.0, _later(0, 0, 3.0), 4.0)
    assert others.num_cores() == pytest.approx(expected)


def test_low_priority_counts_for_a_process_of_low_priority(
    system: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "nice", lambda _: 10)
    system(10.0, _BEFORE, 4.0)
    others = OtherPrograms()
    system(14.0, _later(0, 1, 2.6), 5.0)
    assert others.num_cores() == pytest.approx(0.4)


@pytest.mark.parametrize("ticks", [{}, {0: _BEFORE[0], 1: _BEFORE[2]}], ids=["no cores", "other numbers"])
def test_a_system_that_does_not_tell(ticks: dict[int, list[int]], system: Callable[..., None]):
    system(10.0, ticks, 4.0)
    others = OtherPrograms()
    system(14.0, ticks, 5.0)
    assert others.num_cores() == 0.0


def test_a_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(other_programs, "_PROC", tmp_path / "nowhere")
    assert OtherPrograms().num_cores() == 0.0


def test_names_of_any_bytes_and_children_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name that is cut at 15 bytes may end within a letter."""
    monkeypatch.setattr(other_programs, "_PROC", tmp_path)
    for folder, children in (("1/task/1", "2 3"), ("2/task/2", ""), ("2/task/4", "")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "children").write_text(children)
    (tmp_path / "2/task/4/children").unlink()  # a thread that ends meanwhile; process 3 has ended
    (tmp_path / "2/stat").write_bytes(b"2 (a) b\xc3) S " + b" ".join([b"0"] * 10 + [b"5", b"6", b"7", b"8"]))
    assert other_programs._cpu_s_of_children(1, 100) == pytest.approx(0.26)


def test_what_this_process_has_started_does_not_count():
    """The child of a child spins; the time is that of all children, because pytest's workers are busy too."""
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_SPIN!r}])"
    before_s = other_programs._sample()
    with subprocess.Popen([sys.executable, "-c", nested], start_new_session=True) as child:
        time.sleep(1.0)
        after_s = other_programs._sample()
        os.killpg(child.pid, 9)
    assert before_s is not None and after_s is not None
    assert after_s.own_s - before_s.own_s > 0.1
