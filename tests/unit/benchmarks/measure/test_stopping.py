"""Tests that nothing which a benchmark has started outlives it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.measure import stopping
from benchmarks.measure.stopping import SigtermAsCtrlC, stop_tree
from tests.patience import PATIENCE_S, wait_until


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


def test_the_first_sigterm_is_ctrl_c_and_later_ones_are_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with SigtermAsCtrlC() as sigterm:
        assert not sigterm.came
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert sigterm.came
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_forked_process_ends_silently():
    program = """
import os, signal, time
from benchmarks.measure.stopping import SigtermAsCtrlC
receiver, sender = os.pipe()
with SigtermAsCtrlC() as sigterm:
    process = os.fork()
    if not process:
        os.write(sender, b"1")
        time.sleep(300)
    os.read(receiver, 1)  # Python drops signals that come in the middle of a fork
    os.kill(process, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), sigterm.came)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM} False\n", "")
