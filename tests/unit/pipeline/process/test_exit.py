"""Ends a process at once, with a terminal and without."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.tiny import ROOT

# from a thread, as signals and the watchdog do, while the main thread is stuck
SCRIPT = """
import threading, time
from pipeline.process.exit import leave_now
threading.Thread(target=leave_now, args=(75, "stopped"), daemon=True).start()
time.sleep(300)
"""


def test_the_message_and_the_code_are_written(tmp_path: Path):
    done = leave(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (75, b"stopped\n")
    assert (tmp_path / "code").read_text() == "75\n"


@pytest.mark.parametrize("closed", [False, True])
def test_the_code_is_written_if_nobody_reads_the_output(closed: bool, tmp_path: Path):
    """The reader of a pipe is gone, such as `| tee` after Ctrl-C; or the process has no output at all."""
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


# --- torchrun ends the rest of a run with SIGTERM -------------------------------------------------------

WAITING = """
import sys, time
from pipeline.process.signals import StopSignal
if sys.argv[1:] == ["starts"]:
    print("ready", flush=True)
    time.sleep(300)
with StopSignal(exits=True):
    print("ready", flush=True)
    time.sleep(300)
"""


STOPPED = "stopped: by SIGTERM before the first step; .*resume=auto\n"
KILLED = "error: process 1 is gone before the first step; .*killed.*\n"


@pytest.mark.parametrize(
    ("first", "written", "codes", "message"),
    [
        (signal.SIGTERM, "", (75, 75), STOPPED),
        (signal.SIGKILL, "", (1, -9), KILLED),
        (signal.SIGKILL, "2", (2, -9), "stopped: another process has failed\n"),
        (signal.SIGTERM, "starts", (75, -15), STOPPED),
    ],
    ids=[
        "a stop of both",
        "one was killed",
        "one has failed",
        "a stop of both, one of which has just started",
    ],
)
def test_a_launcher_that_ends_the_rest(
    first: signal.Signals, written: str, codes: tuple[int, int], message: str, tmp_path: Path
):
    """This test is the launcher of two processes, the second of which gets the first signal."""
    code_file = tmp_path / "code"
    variables = {**os.environ, "LOCAL_WORLD_SIZE": "2", "QUICKRES_EXIT_CODE_FILE": str(code_file)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, *([written] if number and written == "starts" else [])],
            cwd=ROOT,
            env={**variables, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    processes[1].send_signal(first)
    errors = {1: processes[1].communicate(timeout=PATIENCE_S)[1]}
    if written.isdecimal():
        code_file.write_text(written)
    processes[0].send_signal(signal.SIGTERM)
    errors[0] = processes[0].communicate(timeout=PATIENCE_S)[1]
    assert tuple(process.returncode for process in processes) == codes
    assert re.fullmatch(message, errors[0]) and errors[1] == ""
    assert code_file.read_text().strip() == str(codes[0])
