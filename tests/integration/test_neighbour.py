"""Checks that training on two cores stays usable beside a program that uses one of them."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import main
from benchmarks.suites import neighbour
from tests.python import ROOT

# Steps of the quickstart on two cores, in turns: alone with two threads, and beside a program that the test
# starts and ends. Each turn prints the number of threads and the images per second.
_TURNS = """
import os, time
from pipeline.process.threads import wait_briefly
wait_briefly()
cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
import torch
from pipeline.config import load_config
from pipeline.process.other_programs import OtherPrograms
from pipeline.training.cpu_threads import set_threads
from tests.tiny import tiny_trainer

trainer = tiny_trainer(load_config("configs/quickstart.yaml", ["runtime.device=cpu", "duration=1000ep"]))
batches = trainer.loaders.train.batches_from(0)

def rate(seconds):
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        trainer.step(next(batches))
        count += trainer.config.data.batch_size
    return count / (time.perf_counter() - began)

rate(0.5)
print(cores[0], flush=True)
while input() != "end":
    torch.set_num_threads(2)
    print(2, rate(0.5), flush=True)
    input()
    print(set_threads(trainer.processes, OtherPrograms()).number, rate(0.5), flush=True)
"""


def _answer(process: subprocess.Popen[str], word: str) -> list[float]:
    assert process.stdin is not None and process.stdout is not None
    print(word, file=process.stdin, flush=True)
    return [float(value) for value in process.stdout.readline().split()]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPU cores")
def test_a_busy_neighbour_leaves_at_least_a_third(monkeypatch: pytest.MonkeyPatch):
    """With a thread for each core, a fifth to a third is left."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    numbers, ratios = [], []
    with subprocess.Popen(
        [sys.executable, "-c", _TURNS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        core = int(process.stdout.readline())
        for _ in range(5):
            _, alone = _answer(process, "alone")
            with neighbour.busy_neighbour(core):
                number, beside = _answer(process, "beside")
            numbers.append(number)
            ratios.append(beside / alone)
        process.communicate("end\n")
    assert (process.returncode, numbers) == (0, [1] * 5)
    assert sorted(ratios)[2] > 1 / 3, ratios


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPU cores")
def test_a_run_without_a_steady_step_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    speed = SimpleNamespace(images_per_sec=SimpleNamespace(median=None))
    monkeypatch.setattr(neighbour, "start", lambda *_, **__: SimpleNamespace(result=speed))
    assert main(["neighbour", "--quick", "runtime.device=cpu", "duration=3st"]) == 2
    assert "error: duration: the run ends before its speed is steady" in capsys.readouterr().err


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPU cores")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_alone_that_is_not_alone_is_told(
    threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Beside other programs it takes one thread, and the run beside the busy process looks as fast."""
    speed = SimpleNamespace(images_per_sec=SimpleNamespace(median=700.0))
    monkeypatch.setattr(
        neighbour, "start", lambda *_, **__: SimpleNamespace(result=speed, cpu_threads=threads)
    )
    assert main(["neighbour", "--quick", "runtime.device=cpu"]) == 0
    assert capsys.readouterr().out.count("warning: alone, but with one thread: other programs") == 2 - threads
