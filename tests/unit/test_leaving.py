"""Leaving at once, whatever has become of the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT

# from a thread, as signals and the watch do, while the main thread is stuck
SCRIPT = """
import threading, time
from pipeline.leaving import leave_now
threading.Thread(target=leave_now, args=(75, "stopped"), daemon=True).start()
time.sleep(20)
"""


def test_the_last_word_is_written(tmp_path: Path):
    done = leave(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (75, b"stopped\n")
    assert (tmp_path / "code").read_text() == "75\n"


@pytest.mark.parametrize("closed", [False, True])
def test_nobody_listens(closed: bool, tmp_path: Path):
    """The other end of a pipe is gone, as of `| tee` after Ctrl-C; or there is no output at all."""
    if closed:
        done = leave(tmp_path, preexec_fn=lambda: os.closerange(0, 3))
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = leave(tmp_path, stdout=writer, stderr=writer)
        os.close(writer)
    assert done.returncode == 75
    assert (tmp_path / "code").read_text() == "75\n"


def leave(folder: Path, **streams: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "QUICKRES_EXIT_CODE_FILE": str(folder / "code")}
    return subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, check=False, **streams)  # type: ignore[call-overload]
