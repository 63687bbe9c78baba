"""Ends a process at once, with a terminal and without."""

import os
import re
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_S
from tests.python import ROOT, run_python

# from a thread, as signals and the watchdog do, while the main thread is stuck
SCRIPT = """
import threading, time
from pipeline.process.exit import leave_now
threading.Thread(target=leave_now, args=(75, "stopped"), daemon=True).start()
time.sleep(300)
"""


def test_the_message_is_written():
    done = leave(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (75, b"stopped\n")


@pytest.mark.parametrize("closed", [False, True])
def test_the_code_is_kept_if_nobody_reads_the_output(closed: bool):
    """The reader of a pipe is gone, such as `| tee` after Ctrl-C; or the process has no output at all."""
    if closed:
        done = leave(preexec_fn=lambda: os.closerange(0, 3))
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = leave(stdout=writer, stderr=writer)
        os.close(writer)
    assert done.returncode == 75


def leave(**streams: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, check=False, **streams)  # type: ignore[call-overload]


# --- torchrun ends the rest of a run with SIGTERM -------------------------------------------------------

# starts two processes as a launcher does, and sends the second one the signal, then the first one SIGTERM
LAUNCHER = """
import os, signal, subprocess, sys
waiting = '''
import time
from pipeline.process.signals import StopSignal
with StopSignal(exits=True):
    print("ready", flush=True)
    time.sleep(300)
'''
world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
processes = []
for rank in ("0", "1"):
    environment = {**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank}
    command = [sys.executable, "-c", waiting]
    processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
for process in processes:
    assert process.stdout.readline() == "ready\\n"
first = signal.Signals[sys.argv[1]]
processes[1].send_signal(first)
if first == signal.SIGKILL:
    processes[1].wait()  # torchrun ends the others once it has reaped one
processes[0].send_signal(signal.SIGTERM)
print(*[process.wait() for process in processes])
"""


@pytest.mark.parametrize(
    ("first", "codes", "message"),
    [
        ("SIGTERM", "75 143", "stopped: by SIGTERM before the first step; .*resume=auto\n"),
        ("SIGKILL", "143 -9", ""),  # the launcher names the killed one
    ],
)
def test_a_launcher_that_ends_the_rest(first: str, codes: str, message: str):
    done = run_python("-c", LAUNCHER, first, timeout=PATIENCE_S)
    assert done.stdout.strip() == codes
    assert re.fullmatch(message, done.stderr)


def test_the_end_of_a_process_does_what_is_registered_for_it():
    """And nothing that takes the interpreter apart: no destructor runs."""
    code = """
import atexit
from pipeline.process.exit import leave_without_dismantling
class Loud:
    def __del__(self):
        print("destroyed")
kept = Loud()
atexit.register(print, "registered")
print("printed")
leave_without_dismantling(7)
"""
    done = run_python("-c", code, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (7, ["printed", "registered"], "")
