"""Tests that nothing which a benchmark has started outlives it."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.measure import stopping
from benchmarks.measure.stopping import stop_tree
from tests.patience import wait_until


def test_descendants_in_sessions_of_their_own_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They ignore SIGTERM here. The launcher of accelerate ends at SIGTERM without them."""
    monkeypatch.setattr(stopping, "PATIENCE_S", 0.05)
    child = tmp_path / "child"
    inner = f"""
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({str(child)!r}).write_text(str(os.getpid()))
time.sleep(300)
"""
    outer = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {inner!r}], process_group=0)"
    )
    process = subprocess.Popen([sys.executable, "-S", "-c", outer])
    wait_until(lambda: child.exists() and child.read_text(), "a child")
    descendant = psutil.Process(int(child.read_text()))
    stop_tree(process)
    assert process.returncode == -signal.SIGTERM
    wait_until(
        lambda: not descendant.is_running() or descendant.status() == psutil.STATUS_ZOMBIE, "the child's end"
    )


def test_a_process_that_has_ended_is_no_error():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    stop_tree(process)
    assert process.returncode == 0
