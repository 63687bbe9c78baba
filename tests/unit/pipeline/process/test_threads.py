"""Checks how torch's threads wait, in new processes because OpenMP reads its variables once, and how many
threads there are."""

import json
import os

import pytest

from pipeline.process.other_programs import OtherPrograms
from pipeline.process.threads import count_threads, wait_briefly
from tests.cores import set_cores
from tests.python import run_python

_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
# a program, stopped as it reads its arguments, before it loads torch
_PROGRAM = """
import argparse, json, os, runpy, sys

def tell(*_):
    print(json.dumps(["torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT")]), flush=True)
    os._exit(0)

argparse.ArgumentParser.parse_intermixed_args = argparse.ArgumentParser.parse_known_args = tell
name, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


class Others(OtherPrograms):
    """Programs that use a given number of cores."""

    def __init__(self, used: float):
        self._used = used

    def num_cores(self) -> float:
        return self._used


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_NAMES, "OMP_NUM_THREADS", "QUICKRES_USER_THREADS"):
        monkeypatch.delenv(name, raising=False)
    set_cores(monkeypatch, 4)


@pytest.mark.parametrize("chosen", [None, *_NAMES])
def test_the_user_s_way_of_waiting_stays(chosen: str | None, monkeypatch: pytest.MonkeyPatch):
    if chosen is not None:
        monkeypatch.setenv(chosen, "7")
    before = dict(os.environ)
    wait_briefly()
    assert dict(os.environ) == before | ({} if chosen is not None else _BRIEFLY)


@pytest.mark.parametrize("words", ["pipeline check", "pipeline.train", "benchmarks step"])
def test_every_program_chooses_before_torch_is_loaded(words: str):
    done = run_python("-c", _PROGRAM, *words.split(), "configs/quickstart.yaml")
    assert json.loads(done.stdout) == [False, "3000"]


@pytest.mark.parametrize(
    ("usual", "used", "number"),
    [(4, 0.0, 4), (4, 0.4, 4), (4, 0.6, 3), (4, 2.9, 1), (4, 4.0, 1), (2, 1.9, 2), (2, 3.2, 1), (1, 4.0, 1)],
)
def test_cores_that_other_programs_use_are_left_out(usual: int, used: float, number: int):
    count = count_threads(usual, Others(used))
    assert count.number == number
    if number == usual:
        assert str(count) == f"CPU threads: {number}"
    else:
        assert f"CPU threads: {number}, because other programs use {used} of the 4 cores" in str(count)
        assert "OMP_NUM_THREADS" in count.reason


@pytest.mark.parametrize(
    ("limit", "used", "number", "reason"),
    [
        (3.5, 0.0, 4, ""),
        (2.0, 0.0, 2, "a limit of CPU time allows only"),
        (2.0, 1.6, 2, "a limit of CPU time allows only"),  # the others use the other two cores
        (2.0, 2.9, 1, "other programs use 2.9 of the 4 cores"),
        (0.5, 0.0, 1, "a limit of CPU time allows only"),
    ],
)
def test_the_limit_of_a_container_is_kept(
    limit: float, used: float, number: int, reason: str, monkeypatch: pytest.MonkeyPatch
):
    set_cores(monkeypatch, 4, limit)
    count = count_threads(4, Others(used))
    assert count.number == number and reason in count.reason and bool(reason) == bool(count.reason)


@pytest.mark.parametrize(
    ("by_launcher", "number"), [(None, 4), ("4", 4), ("", 2)], ids=["variable", "launch.sh", "nothing"]
)
def test_the_user_s_number_of_threads_stays(
    by_launcher: str | None, number: int, monkeypatch: pytest.MonkeyPatch
):
    """launch.sh sets OMP_NUM_THREADS in any case, and tells what the user had set."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    if by_launcher is not None:
        monkeypatch.setenv("QUICKRES_USER_THREADS", by_launcher)
    assert count_threads(4, Others(2.0)).number == number


@pytest.mark.parametrize(("before", "number"), [(3, 3), (1, 1), (4, 4), (8, 2)])
def test_a_continued_run_keeps_its_number(before: int, number: int):
    """But a smaller machine has fewer cores."""
    assert count_threads(4, Others(2.0), before).number == number


def test_another_number_than_before_is_told(monkeypatch: pytest.MonkeyPatch):
    assert count_threads(4, Others(0.0), 4).reason == ""
    assert "CPU threads: 4, but 8 before; the last bits" in str(count_threads(4, Others(0.0), 8))
    both = count_threads(4, Others(2.0), 8).reason
    assert "but 8 before" in both and "because other programs use 2.0 of the 4 cores" in both
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "CPU threads: 2, but 3 before" in str(count_threads(2, Others(0.0), 3))
