"""Checks that the recorded command is the one that a person gave."""

import shlex
import sys

import pytest

from pipeline.run.environment import command_line

CHILD = ["/venv/bin/python", "-u", "-m", "pipeline.train", "configs/a.yaml", "log.name=b c"]


@pytest.mark.parametrize(
    ("started", "variables", "expected"),
    [
        (CHILD, {"QUICKRES_NUM_PROCESSES": "1"}, "./launch.sh configs/a.yaml 'log.name=b c'"),
        (
            CHILD,
            {"QUICKRES_NUM_PROCESSES": "2", "NUM_PROCESSES": "2"},
            "NUM_PROCESSES=2 ./launch.sh configs/a.yaml 'log.name=b c'",
        ),
        (
            CHILD,
            {"WORLD_SIZE": "2"},
            "accelerate launch --num_processes 2 -m pipeline.train configs/a.yaml 'log.name=b c'",
        ),
        (CHILD, {}, "python -u -m pipeline.train configs/a.yaml 'log.name=b c'"),
        (
            ["python3", "-m", "pipeline", "train", "c.yaml"],
            {"HOME": "/home/me"},
            "python -m pipeline train c.yaml",
        ),
        (["python3", "mine.py"], {}, "python mine.py"),
    ],
)
@pytest.mark.usefixtures("process_state")
def test_the_command(
    started: list[str], variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "executable", "/somewhere/bin/python")
    for name in ("NUM_PROCESSES", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shlex.join(command_line()) == expected
