"""Run the shipped script in a process of its own, because it forks."""

import os
import subprocess
import sys

from tests.tiny import ROOT


def test_ten_kills_leave_a_checkpoint_each():
    command = [sys.executable, "-W", "error", "-m", "tests.kill_nine", "--kills", "10", "--seed", "1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("10 kills, each left a checkpoint that loads; ")
