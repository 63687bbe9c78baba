"""Runs two real processes by launch.sh, on the CPU and on GPUs: a signal, and a process that is lost.

The checkout has links to the code, a copy of launch.sh, and a uv that installs nothing. Its Python is the one
that runs the tests.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.run.checkpoint import folder_of, newest_intact
from tests.gpus import marks_of_gpus
from tests.integration.checkout import UV, write
from tests.patience import PATIENCE_S, wait_until
from tests.python import ROOT
from tests.tiny import RECIPE, only_run

pytestmark = pytest.mark.slow
# no log point, and no end, within the patience of a test
LONG = ("duration=100000ep", "log.eval_every=100000ep", "log.log_every=100000ep", "log.tensorboard=false")
ON_GPUS = ("runtime.device=gpu", "precision.mode=fp16", "data.image_size=32")
DEVICES = [
    pytest.param((), id="cpu"),
    pytest.param((*ON_GPUS, "compile.mode=none"), marks=marks_of_gpus(2), id="gpus-eager"),
    pytest.param((*ON_GPUS, "compile.mode=reduce-overhead"), marks=marks_of_gpus(2), id="gpus-captured"),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    write(root / ".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n', 0o755)
    write(root / ".venv/bin/uv", UV, 0o755)
    write(root / ".venv/pyvenv.cfg", "")
    for name in ("pipeline", "kernels", "configs"):
        (root / name).symlink_to(ROOT / name)
    for path in (ROOT / "launch.sh", ROOT / "pyproject.toml", *ROOT.glob("*.lock")):
        shutil.copy(path, root)
    # launch.sh works in the folder of its own file, links followed: in another one it would install for real
    assert (root / "launch.sh").resolve().parent == root.resolve() != ROOT.resolve()
    return root


@pytest.fixture
def started(
    checkout: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[str]]:
    """Start a run; return it once it has saved a checkpoint. None of its processes outlives the test."""
    keys = ("data.eval_batch_size=6", "log.checkpoint_every=20st", "runtime.hang_timeout_s=60")
    arguments = [str(RECIPE), f"log.dir={tmp_path}/runs", *LONG, *keys, *request.param]
    process = subprocess.Popen(
        [checkout / "launch.sh", *arguments],
        env={**os.environ, "NUM_PROCESSES": "2", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def has_saved() -> bool:
        assert process.poll() is None, process.communicate()
        return any(tmp_path.glob("runs/*/checkpoints/step-*"))

    try:
        wait_until(has_saved, "the first checkpoint", 2 * PATIENCE_S)
        yield process
    finally:
        left = (
            [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        )
        for each in left:
            each.kill()


def errors_of(process: subprocess.Popen[str]) -> list[str]:
    """Return the lines on stderr once the run has ended, without those of launch.sh."""
    _, err = process.communicate(timeout=PATIENCE_S)
    return [line for line in err.splitlines() if not line.startswith("launch.sh: ")]


@pytest.mark.parametrize("started", DEVICES, indirect=True)
def test_sigterm_saves_and_stops(started: subprocess.Popen[str], tmp_path: Path):
    started.send_signal(signal.SIGTERM)
    (message,) = errors_of(started)
    match = re.fullmatch(r"stopped: by SIGTERM, saved at step (\d+); continue with .*resume=auto", message)
    assert match is not None, message
    assert started.returncode == 75
    checkpoints = only_run(tmp_path / "runs") / "checkpoints"
    assert newest_intact(checkpoints) == (folder_of(checkpoints, int(match[1])), [])


@pytest.mark.parametrize("started", DEVICES[1:], indirect=True)
def test_a_killed_process_is_named_once_and_last(started: subprocess.Popen[str], tmp_path: Path):
    """`test_processes.py` has the same on the CPU."""
    trainers = [
        child
        for child in psutil.Process(started.pid).children(recursive=True)
        if child.environ().get("RANK") == "1"
    ]
    trainers[0].kill()
    lines = errors_of(started)
    pattern = "error: process 1 (has not responded|was killed by SIGKILL).*resume=auto"
    assert re.fullmatch(pattern, lines[-1]), lines
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in "\n".join(lines)
    assert started.returncode == 1
    assert newest_intact(only_run(tmp_path / "runs") / "checkpoints")[0] is not None
