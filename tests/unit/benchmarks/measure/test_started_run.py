"""Starts stand-ins of runs, each in a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure import started_run, stopping
from pipeline.errors import TrainingError
from pipeline.process.cache_dirs import VARIABLES, use_cache_folder
from tests.patience import PATIENCE_S


def test_a_start_writes_to_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    started: list[str] = []

    def command_line(recipe: str, overrides: list[str]) -> list[str]:
        started.extend(overrides)
        return [sys.executable, "-S", "-c", "import sys; sys.exit('error: not today')"]

    monkeypatch.setattr(started_run, "command_line", command_line)
    with pytest.raises(TrainingError, match="exit code 1:\nerror: not today"):
        started_run.start("recipe.yaml", ["log.dir=mine", "duration=1st"], tmp_path)
    assert len(started) == 2 and started[0].startswith("log.dir=/") and started[1] == "duration=1st"


def test_ctrl_c_stops_the_run_that_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """It is asked first: launch.sh passes that on, and the trainer saves nothing in the middle of a step."""
    stopped, ready = tmp_path / "stopped", tmp_path / "ready"
    program = f"""
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path({str(stopped)!r}).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({str(ready)!r}).touch()
time.sleep(300)
"""
    monkeypatch.setattr(started_run, "command_line", lambda *_: [sys.executable, "-S", "-c", program])

    def interrupt(process: "subprocess.Popen[str]") -> tuple[str, str]:
        while not ready.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    monkeypatch.setattr(stopping, "PATIENCE_S", PATIENCE_S)
    with pytest.raises(KeyboardInterrupt):
        started_run.start("recipe.yaml", [])
    assert stopped.exists()


def test_launch_sh_of_another_folder_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A linked .venv is that of another checkout: launch.sh would install this one into it."""
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "own/.venv/bin").mkdir(parents=True)
    (tmp_path / "own/.venv/.installed").touch()
    (tmp_path / "other/.venv").symlink_to(tmp_path / "own/.venv")
    for folder, expected in {"own": True, "other": False}.items():
        monkeypatch.setattr(started_run, "_ROOT", tmp_path / folder)
        monkeypatch.setattr(sys, "executable", str(tmp_path / folder / ".venv/bin/python"))
        assert started_run.has_launcher() == expected


def test_a_start_knows_no_cache_but_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The benchmark's own process points every library to the user's cache."""
    names = [*VARIABLES, "XDG_CACHE_HOME"]
    program = f"import os; print({{k: os.environ.get(k) for k in {names}}}); raise SystemExit(1)"
    monkeypatch.setattr(started_run, "command_line", lambda *_: [sys.executable, "-S", "-c", program])
    use_cache_folder()
    with pytest.raises(TrainingError) as raised:
        started_run.start("recipe.yaml", [], tmp_path)
    assert str(raised.value).splitlines()[1] == str(
        {**dict.fromkeys(VARIABLES), "XDG_CACHE_HOME": str(tmp_path)}
    )
