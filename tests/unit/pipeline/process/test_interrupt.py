"""Checks that Ctrl-C ends a command with one word and exit code 130, whatever the command does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.python import ROOT

BEGIN = """
import os, sys, time
from pipeline.commands.exit_code import run_process

def ready():
    print("ready", flush=True)

def main():
"""
WORK = {
    "sleeps": "ready(); time.sleep(60)",
    "swallows the exception": """
    ready()
    while True:
        try: time.sleep(60)
        except BaseException: pass""",
    "turns it into another": """
    ready()
    try: time.sleep(60)
    except BaseException: raise ImportError("no library") from None""",
    "prints a traceback": """
    ready()
    class Loud:
        def __del__(self): time.sleep(60)
    Loud()
    time.sleep(60)""",
    "calls C": """
    import ctypes
    ready()
    ctypes.PyDLL(None).usleep(300_000); ctypes.CDLL(None).sleep(60); ctypes.CDLL(None).sleep(60)""",
    "forks": """
    if os.fork() == 0:
        ready()
        time.sleep(60)
    time.sleep(60)""",
    "removes its files": """
    try: ready(); time.sleep(60)
    finally: print("removed")""",
}


def start(work: str, before: str = "", arguments: str = "") -> subprocess.Popen[str]:
    """Start a process that does this work, and wait until it has printed "ready"."""
    code = f"{before}{BEGIN}    {work}\nrun_process(main{arguments})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def signal_group(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """Send what a terminal sends at Ctrl-C."""
    os.killpg(process.pid, number)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_one_word_and_130(work: str):
    process = start(work)
    signal_group(process)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "stopped\n")
    assert out == ("removed\n" if "removed" in work else "")


def test_code_that_handles_the_signal_itself():
    """As `StopSignal` and sweeps do."""
    work = "import signal; signal.signal(2, lambda *_: None); ready(); time.sleep(1.5); return 75"
    process = start(work)
    signal_group(process)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == 75


def test_a_process_that_ignores_the_signal_goes_on():
    process = start("ready(); time.sleep(0.5); return 0", "import signal; signal.signal(2, signal.SIG_IGN)\n")
    signal_group(process)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == 0


def test_an_import_is_ended_at_once(tmp_path: Path):
    (tmp_path / "slow_module.py").write_text(
        "import time\nprint('ready', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    print('went on')\n"
    )
    process = start(f"sys.path.insert(0, {str(tmp_path)!r}); import slow_module")
    signal_group(process)
    assert process.communicate(timeout=30) == ("", "stopped\n") and process.returncode == 130


@pytest.mark.parametrize("work", ["sleeps", "swallows the exception", "forks", "removes its files"])
def test_sigterm_too_if_the_program_wants_it(work: str):
    process = start(WORK[work], arguments=", at_sigterm=True")
    signal_group(process, signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "stopped\n")
    assert out == ("removed\n" if "removed" in WORK[work] else "")


def test_sigterm_ends_one_of_several_processes_as_ever(monkeypatch: pytest.MonkeyPatch):
    """The launcher sends it to those that are left when one has failed."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = start(WORK["sleeps"], arguments=", at_sigterm=True")
    signal_group(process, signal.SIGTERM)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == -signal.SIGTERM


KEEPING = "from pipeline.process.interrupt import keep_results\n"
# longer than the second that a command has which keeps no results
SHOWING = """
    keep_results()
    try: ready(); time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1.5); print("results")
    return 0"""


@pytest.mark.parametrize(
    "numbers", [[2], [2, 2], [15], [15, 15]], ids=["SIGINT", "SIGINT twice", "SIGTERM", "SIGTERM twice"]
)
def test_results_are_shown_however_long_that_takes(numbers: list[int]):
    process = start(SHOWING, KEEPING, ", at_sigterm=True")
    for number in numbers:
        signal_group(process, number)
        time.sleep(0.1)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "results\n")
    assert error.startswith("stopping") and error.endswith("\nstopped\n") and error.count("\n") == 2


def test_a_second_ctrl_c_ends_a_process_that_keeps_results():
    work = """
    keep_results()
    while True:
        try: ready(); time.sleep(60)
        except BaseException: pass"""
    process = start(work, KEEPING)
    signal_group(process)
    time.sleep(1.3)
    assert process.poll() is None
    signal_group(process)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and error.endswith("\nstopped\n")


@pytest.mark.parametrize("program", ["pipeline", "benchmarks"])
def test_the_commands_are_such_programs(program: str):
    code = f"""
import runpy
from pipeline.commands import exit_code
exit_code.run_process = lambda main, **options: print(options)
runpy.run_module("{program}", run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{'at_sigterm': True}\n"
