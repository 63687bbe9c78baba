"""The progress bar, which is on a terminal alone. The plain lines are those of the tests of whole runs."""

import io
import sys
from typing import Any

import pytest

from pipeline.console import TrainingConsole

RECORD = {"loss": 0.5432, "accuracy": 0.875, "lr": 0.05, "images_per_sec": 12345.6, "steps_per_sec": 24.11}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "loss 0.543  acc 87.50%  lr 0.0500  12,346 img/s  24.1 it/s"),
        ({"images_per_sec": None, "steps_per_sec": None}, "loss 0.543  acc 87.50%  lr 0.0500  warming up"),
        ({"loss": None, "accuracy": None}, "all skipped  lr 0.0500  12,346 img/s  24.1 it/s"),
    ],
)
def test_the_bar(changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200")):
        monkeypatch.setenv(name, value)
    console = TrainingConsole(total_steps=40, start_step=10)
    console.step(20)
    console.train(RECORD | changes)
    console.close()
    assert "20/40" in terminal.getvalue() and told in terminal.getvalue()


def test_other_processes_have_none(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console = TrainingConsole(total_steps=40, enabled=False)
    console.train(RECORD)
    console.say("nothing")
    console.close()
    assert terminal.getvalue() == ""
