"""Tests the process that runs a program: its output, what it uses, its environment, and its end."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from benchmarks.peers import watched
from benchmarks.peers.watched import Watched, watch
from pipeline.errors import TrainingError
from tests.gpus import needs_gpu
from tests.patience import PATIENCE_S, wait_until

CPU = torch.device("cpu")


def run(
    program: str, folder: Path, lines: list[tuple[str, float]] | None = None, **variables: str
) -> Watched:
    kept = [] if lines is None else lines
    command = [sys.executable, "-S", "-c", program]
    return watch(command, folder, lambda line, at_s: kept.append((line.rstrip(), at_s)), CPU, **variables)


def test_lines_come_at_once_with_their_time_and_time_is_counted(tmp_path: Path):
    lines: list[tuple[str, float]] = []
    program = """
import os, subprocess, sys, time
print(os.getcwd(), os.environ["MORE"])
time.sleep(0.2)
print("error", file=sys.stderr)
busy = "import time\\nwhile time.process_time() < 0.3: pass"
subprocess.run([sys.executable, "-S", "-c", busy])
"""
    used = run(program, tmp_path, lines, MORE="x")
    assert [line for line, _ in lines] == [f"{tmp_path} x", "error"]
    assert 0 < lines[0][1] < lines[1][1] - 0.15 < used.wall_s
    assert used.cpu_s > 0.3, "the time of a child counts"
    assert used.peak_memory_bytes is None


def test_a_program_gets_the_user_s_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What this process sets for itself would change the speed of others; what the user sets is kept."""
    monkeypatch.setattr(watched, "_read_first_environment", lambda: b"MPLCONFIGDIR=mine\0HOME=/root\0")
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TRITON_CACHE_DIR", "RANK"}
    for name in (*ours, "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "set")
    lines: list[tuple[str, float]] = []
    run("import os; print(*sorted(os.environ))", tmp_path, lines)
    names = lines[0][0].split()
    assert "MPLCONFIGDIR" in names and not ours & {*names}


def test_a_program_that_fails_shows_its_last_lines(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"failed with exit code 1:\n(.*\n)*ValueError: not today"):
        run("print('begin'); raise ValueError('not today')", tmp_path)


def test_ctrl_c_ends_the_program_and_its_children(tmp_path: Path):
    child = tmp_path / "child"
    program = f"""
import subprocess, sys, time
code = "import os, pathlib, time; pathlib.Path({str(child)!r}).write_text(str(os.getpid())); time.sleep(300)"
subprocess.Popen([sys.executable, "-S", "-c", code])
print("ready")
time.sleep(300)
"""

    def interrupt(line: str, at_s: float) -> None:
        wait_until(lambda: child.exists() and child.read_text(), "a child")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch([sys.executable, "-S", "-c", program], tmp_path, interrupt, CPU)
    status = Path(f"/proc/{child.read_text()}/stat")
    wait_until(lambda: not status.exists() or " Z " in status.read_text(), "the child's end")


def test_the_largest_use_of_the_gpu_counts_beyond_that_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used = iter([100, 150, 400, 300])
    monkeypatch.setattr(watched, "_PAUSE_S", 0.01)
    seen = threading.Event()

    def read_memory(_: torch.device) -> tuple[int, int]:
        value = next(used, None)
        if value is None:
            seen.set()
        return 1000 - (value or 100), 1000

    monkeypatch.setattr(torch.cuda, "mem_get_info", read_memory)

    def wait(line: str, at_s: float) -> None:
        assert seen.wait(PATIENCE_S)

    command = [sys.executable, "-S", "-c", "print('ready')"]
    assert watch(command, tmp_path, wait, torch.device("cuda")).peak_memory_bytes == 300


@needs_gpu()
def test_the_memory_of_a_program_on_the_gpu_is_seen(tmp_path: Path):
    program = """
import time, torch
held = torch.empty(2**30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
time.sleep(2)
"""
    command = [sys.executable, "-c", program]
    used = watch(command, tmp_path, lambda line, at_s: None, torch.device("cuda", 0))
    assert used.peak_memory_bytes is not None and 2**30 <= used.peak_memory_bytes < 3 * 2**30
