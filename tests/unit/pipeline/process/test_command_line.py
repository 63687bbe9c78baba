"""Checks that printed commands are those that a person gave, and that they can be copied."""

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

from pipeline.process.command_line import command_line, module_command, pipeline_command, same_command

CHILD = ["/venv/bin/python", "-u", "-m", "pipeline.train", "configs/a.yaml", "log.name=b c"]
ONE = {"QUICKRES_NUM_PROCESSES": "1"}
TWO = {"QUICKRES_NUM_PROCESSES": "2", "NUM_PROCESSES": "2"}
BY_HAND = ["python3", "-m", "pipeline", "train", "c.yaml", "resume=auto", "log.dir=a b", "--profile"]


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, process_state: None) -> None:
    monkeypatch.setattr(sys, "executable", "/somewhere/bin/python")
    for name in ("NUM_PROCESSES", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def start(monkeypatch: pytest.MonkeyPatch, words: list[str], variables: dict[str, str]) -> None:
    monkeypatch.setattr(sys, "orig_argv", words)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("started", "variables", "expected"),
    [
        (CHILD, ONE, "./launch.sh configs/a.yaml 'log.name=b c'"),
        (CHILD, TWO, "NUM_PROCESSES=2 ./launch.sh configs/a.yaml 'log.name=b c'"),
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
def test_the_command(
    started: list[str], variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
):
    start(monkeypatch, started, variables)
    assert shlex.join(command_line()) == expected


@pytest.mark.parametrize(
    ("started", "variables", "expected"),
    [
        (CHILD, TWO, "NUM_PROCESSES=2 ./launch.sh configs/a.yaml 'log.name=b c' resume=auto"),
        (
            BY_HAND,
            {},
            "/somewhere/bin/python -m pipeline train c.yaml 'log.dir=a b' --profile resume=auto",
        ),
        (["python3", "mine.py"], {}, None),  # a program of the user's own is not to be run again
        ([*CHILD[:4], "/dev/fd/63", "seed=1"], ONE, None),  # nor is a recipe by a pipe
    ],
)
def test_the_command_that_continues_the_run(
    started: list[str], variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    start(monkeypatch, started, variables)
    assert same_command("resume=auto") == expected


def test_the_interpreter_is_one_that_the_shell_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its name if it is on the PATH, relative if it is below the folder, otherwise by its whole path."""
    start(monkeypatch, BY_HAND, {})
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/true")
    assert module_command("a", "b c") == "/somewhere/bin/python -m a 'b c'"
    monkeypatch.setattr(sys, "executable", str(python))
    assert module_command("a", Path("x")) == f"{python} -m a x"
    monkeypatch.setenv("PATH", str(python.parent))
    assert module_command("a") == "python -m a"
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert module_command("a") == ".venv/bin/python -m a"
    assert pipeline_command("report", "a b") == ".venv/bin/python -m pipeline report 'a b'"
    (tmp_path / "launch.sh").touch()  # uses that very interpreter
    assert pipeline_command("report", "a b") == "./launch.sh report 'a b'"


def test_tensorboard_starts_as_a_module():
    """Its script may not be on the PATH, or may name the interpreter of another folder."""
    spec = importlib.util.find_spec("tensorboard.main")
    assert spec is not None and spec.origin is not None
    assert '__name__ == "__main__"' in Path(spec.origin).read_text()
