"""Checks the progress bar, and a run whose output nobody reads; tests of runs check the plain lines."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.checkpoint import folder_of, newest_intact
from pipeline.run.console import TrainingConsole
from tests.python import ROOT
from tests.tiny import RECIPE, a_train_record, an_eval_record, only_run

RECORD = a_train_record(20, loss=0.5432, images_per_sec=12345.6, steps_per_sec=24.11)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "loss 0.543  acc 87.50%  lr 0.0500  12,346 img/s  24.1 it/s"),
        ({"images_per_sec": None, "steps_per_sec": None}, "loss 0.543  acc 87.50%  lr 0.0500  warming up"),
        ({"loss": 1.8132e27}, "loss 1.81e+27  acc 87.50%"),
        ({"loss": None, "accuracy": None}, "all skipped  lr 0.0500  12,346 img/s  24.1 it/s"),
    ],
)
def test_the_bar(changes: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200")):
        monkeypatch.setenv(name, value)
    console = TrainingConsole()
    console.begin(total_steps=40, start_step=10)
    console.step(20)
    console.train(RECORD.model_copy(update=changes))
    console.close()
    assert "20/40" in terminal.getvalue() and expected in terminal.getvalue()


def test_a_disabled_console_prints_nothing(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console = TrainingConsole(enabled=False)
    console.begin(total_steps=40)
    console.train(RECORD)
    console.say("nothing")
    console.close()
    assert terminal.getvalue() == ""


def test_the_time_left_is_of_the_pace_since_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Compiling takes 60 of the first 70 seconds here, and happens once."""
    clock = iter((0.0, 0.0, 70.0, 80.0))
    monkeypatch.setattr("pipeline.run.console.time.perf_counter", lambda: next(clock))
    console = TrainingConsole()
    console.begin(total_steps=825)
    for step in (100, 200):
        evaluation = an_eval_record(step).model_copy(update={"epoch": step / 390})
        console.evaluated(RECORD, evaluation, num_epochs=825 / 390)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("left 8:27") and second.endswith("left 1:02")
    assert second.startswith("epoch   0.51/2.12  lr 0.05000")


@pytest.mark.parametrize(("loss", "text"), [(99_999.0, "99999.0000"), (1.8132e27, "1.81e+27")])
def test_huge_losses_are_short(loss: float, text: str, capsys: pytest.CaptureFixture[str]):
    evaluation = an_eval_record(100).model_copy(update={"loss": loss})
    TrainingConsole().evaluated(RECORD.model_copy(update={"loss": loss}), evaluation, num_epochs=2)
    printed = capsys.readouterr().out
    assert f"train loss {text} acc" in printed and f"test loss {text} acc" in printed


def test_an_output_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch):
    """A full disk fails to write, like a terminal that has hung up."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        console = TrainingConsole()
        console.begin(10)
        for _ in range(3):
            console.say("a line")
        console.close()
        assert os.path.samestat(os.fstat(full.fileno()), os.stat(os.devnull))


@pytest.mark.slow
def test_a_run_that_is_stopped_after_tee_is_gone_is_saved(tmp_path: Path):
    """Ctrl-C ends `| tee` first. Step 10 is printed before it is saved."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tests.integration.interrupted", "SIGTERM", "10", str(RECIPE)]
    keys = [f"log.dir={tmp_path}", "log.tensorboard=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *keys], cwd=ROOT, env=environment, stdout=writer, stderr=writer, check=False
    )
    os.close(writer)
    assert done.returncode == 75
    checkpoints = only_run(tmp_path) / "checkpoints"
    assert newest_intact(checkpoints) == (folder_of(checkpoints, 10), [])
