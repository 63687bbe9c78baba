"""`tensorboard` shows TensorBoard each run once."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__ as cli

pytestmark = pytest.mark.usefixtures("process_state")


def test_tensorboard_shows_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("a-1", "b-1"):
        (tmp_path / "runs" / name / "tb").mkdir(parents=True)
    (tmp_path / "runs/no-events").mkdir()
    (tmp_path / "runs/latest").symlink_to("b-1")
    shown: list[list[str]] = []

    def serve(command: list[str]) -> Any:
        assert command[1:3] == ["-m", "tensorboard.main"] and command[-4:] == [
            *("--port", "7007"),
            *("--host", "localhost"),
        ]
        logdir = Path(command[command.index("--logdir") + 1])
        (tmp_path / "runs/c-1/tb").mkdir(parents=True)  # a run that begins meanwhile
        end = time.monotonic() + 20
        while not (logdir / "c-1").exists() and time.monotonic() < end:
            time.sleep(0.01)
        shown.append(sorted(path.name for path in logdir.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.commands.tensorboard._REFRESH_S", 0.01)
    monkeypatch.setattr("pipeline.commands.tensorboard.subprocess.run", serve)
    assert cli.main(["tensorboard", str(tmp_path / "runs"), "--port", "7007"]) == 0
    assert shown == [["a-1", "b-1", "c-1"]]
    assert capsys.readouterr().out == f"2 runs of {tmp_path}/runs\n"


@pytest.mark.parametrize("made", [True, False])
def test_tensorboard_of_no_run(made: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if made:
        (tmp_path / "runs").mkdir()
    assert cli.main(["tensorboard", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/runs: ") and "folder" in line
