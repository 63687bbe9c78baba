"""Checks the start of the command: launch.sh, a launcher of several processes, or the process itself."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.process.start_time import command_started, process_started, tell_launcher
from tests.python import ROOT, run_python

_TELL = """
import time
from pipeline.process.start_time import process_started
print(time.perf_counter() - process_started())
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUICKRES_START_TIME", "QUICKRES_RESULT_PIPE", "ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_the_age_of_a_process():
    began = time.perf_counter()
    done = run_python("-c", _TELL)
    assert 0 <= float(done.stdout) <= time.perf_counter() - began + 0.02
    assert process_started(0) == pytest.approx(time.perf_counter(), abs=0.5), "of a process that nobody sees"


_SINCE = """
import os, time
from pipeline.process.start_time import command_started, process_started
began = command_started()
print(began - process_started(), began - process_started(os.getppid()))
"""
_LAUNCHER = """
import os, subprocess, sys, time
time.sleep(0.5)
os.environ["LOCAL_RANK"] = "0"
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


@pytest.mark.parametrize("parent", ["launcher", "shell"])
def test_who_was_started_first(parent: str):
    """A shell in which somebody has set a launcher's variable is no launcher."""
    by_shell = ["bash", "-c", 'sleep 0.5; LOCAL_RANK=0 "$@"; true', "bash", sys.executable, "-c", _SINCE]
    command = by_shell if parent == "shell" else [sys.executable, "-c", _LAUNCHER, _SINCE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after_process, after_parent = map(float, done.stdout.split())
    if parent == "shell":
        assert after_process == pytest.approx(0, abs=0.1) and after_parent > 0.4
    else:
        assert after_parent == pytest.approx(0, abs=0.1) and after_process < -0.4


def test_launch_sh_tells_its_start(monkeypatch: pytest.MonkeyPatch):
    assert command_started() == pytest.approx(process_started(), abs=0.1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("QUICKRES_START_TIME", str(time.time() - 100))
    assert command_started() == pytest.approx(time.perf_counter() - 100, abs=1)


def test_a_launcher_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUICKRES_RESULT_PIPE", str(tmp_path / "missing"))
    tell_launcher(tmp_path / "result.json")
    assert not list(tmp_path.iterdir())
