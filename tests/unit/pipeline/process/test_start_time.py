"""Checks the start of the command: launch.sh, a launcher of several processes, or the process itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.process.start_time import command_started, process_started, tell_launcher
from tests.tiny import ROOT

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
    done = subprocess.run([sys.executable, "-c", _TELL], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 <= float(done.stdout) <= time.perf_counter() - began + 0.02
    assert process_started(0) == pytest.approx(time.perf_counter(), abs=0.5), "of a process that nobody sees"


def test_who_was_started_first(monkeypatch: pytest.MonkeyPatch):
    assert command_started() == pytest.approx(process_started(), abs=0.1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command_started() == pytest.approx(process_started(os.getppid()), abs=0.1)
    monkeypatch.setenv("QUICKRES_START_TIME", str(time.time() - 100))
    assert command_started() == pytest.approx(time.perf_counter() - 100, abs=1)


def test_a_launcher_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUICKRES_RESULT_PIPE", str(tmp_path / "missing"))
    tell_launcher(tmp_path / "result.json")
    assert not list(tmp_path.iterdir())
