"""Simulates two hosts: the real Slurm script, stand-ins for srun and scontrol, two real launchers."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.checkout import write
from tests.patience import PATIENCE_S, wait_until
from tests.python import ROOT
from tests.tiny import RECIPE, only_run, read_metrics

# As srun does: run the command once on each host, and return the worst exit code.
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do echo "$1" >>"$(dirname "$0")/options"; shift; done
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@" & first=$!
wait $other; worst=$?
wait $first || worst=$?
exit $worst
"""
SCONTROL = """#!/bin/sh
case $1 in
    show) printf '127.0.0.1\\nelsewhere\\n' ;;
    requeue) echo "$2" >>"$(dirname "$0")/requeued" ;;
esac
"""


def free_job_id() -> int:
    """Return a job id whose port, 20000 more, is free."""
    while True:
        job_id = random.SystemRandom().randrange(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", 20_000 + job_id))
            return job_id


def start(folder: Path) -> subprocess.Popen[str]:
    durations = ("duration=150st", "log.eval_every=150st", "log.log_every=150st", "log.checkpoint_every=25st")
    keys = (f"log.dir={folder}/runs", "data.eval_batch_size=6", *durations, "log.tensorboard=false")
    slurm = {
        "SLURM_JOB_ID": str(free_job_id()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "two",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "PROCESSES_PER_HOST": "1",
        "PYTHON": sys.executable,
    }
    return subprocess.Popen(
        [ROOT / "configs/accelerate/slurm.sh", RECIPE, *keys],
        env={**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trainers(script: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that train, those of the first host first."""
    children = psutil.Process(script.pid).children(recursive=True)
    ranks = [process for process in children if "RANK" in process.environ()]
    return sorted(ranks, key=lambda process: process.environ()["RANK"])


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_goes_on(tmp_path: Path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        write(tmp_path / name, text, 0o755)
    script = start(tmp_path)
    saved = "runs/*/checkpoints/step-*"
    wait_until(lambda: script.poll() is not None or any(tmp_path.glob(saved)), "the first checkpoint")
    assert script.poll() is None, script.communicate()
    processes = trainers(script)
    hosts = [process.environ()["GROUP_RANK"] for process in processes]
    assert hosts == ["0", "1"]
    processes[1].send_signal(signal.SIGTERM)
    out, err = script.communicate(timeout=PATIENCE_S)
    assert script.returncode == 75, err
    assert "2 x CPU" in out
    (message,) = (line for line in err.splitlines() if line.startswith(("stopped", "error")))
    assert message.startswith("stopped: by a signal to another process, saved at step ")
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1
    assert (tmp_path / "options").read_text().split() == ["--kill-on-bad-exit=0", "--cpus-per-task=1"]

    script = start(tmp_path)
    out, err = script.communicate(timeout=PATIENCE_S)
    assert script.returncode == 0, err
    run = only_run(tmp_path / "runs")
    assert f"continuing {run} from step " in out
    result = json.loads((run / "result.json").read_text())
    assert (result["world_size"], result["steps"], result["test_seen"]) == (2, 150, 8)
    assert [record["step"] for record in read_metrics(run)][-2:] == [150, 150]  # a log and an evaluation
