"""Checks that a computation on two cores stays usable beside a program that uses one of them."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import main
from benchmarks.suites import neighbour
from tests.tiny import ROOT

# five pairs of half a second each: alone, and beside a process that multiplies matrices
_PAIRS = """
import json, os, time
from pipeline.process.threads import wait_briefly
wait_briefly()
import torch
from benchmarks.suites.neighbour import busy_neighbour

cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
torch.set_num_threads(2)
images, weight = torch.randn(64, 16, 32, 32), torch.randn(16, 16, 3, 3)

def rate():
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + 0.5:
        torch.nn.functional.conv2d(images, weight, padding=1)
        count += 1
    return count / (time.perf_counter() - began)

rate()
ratios = []
for _ in range(5):
    alone = rate()
    with busy_neighbour(cores[0]):
        ratios.append(rate() / alone)
print(json.dumps(sorted(ratios)))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPU cores")
def test_a_busy_neighbour_leaves_at_least_a_third():
    """With threads that spin, which is OpenMP's default, a twentieth to a third is left."""
    done = subprocess.run(
        [sys.executable, "-c", _PAIRS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ratios = json.loads(done.stdout)
    assert ratios[2] > 1 / 3, ratios


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPU cores")
def test_a_run_without_a_steady_step_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    speed = SimpleNamespace(images_per_sec=SimpleNamespace(median=None))
    monkeypatch.setattr(neighbour, "start", lambda *_, **__: SimpleNamespace(result=speed))
    assert main(["neighbour", "--quick", "runtime.device=cpu", "duration=3st"]) == 2
    assert "error: duration: the run ends before its speed is steady" in capsys.readouterr().err
