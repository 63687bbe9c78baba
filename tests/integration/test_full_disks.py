"""A disk that is full, or a folder that goes away, ends a run with one message and loses no checkpoint."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import train
from pipeline.errors import TrainingError
from pipeline.run.checkpoint import folder_of, newest_intact, steps_in
from pipeline.run.checkpoint_writer import CheckpointWriter
from pipeline.run.metrics_log import MetricsLog
from tests.messages import error_line
from tests.patience import wait_until
from tests.tiny import RECIPE, only_run, tiny_config, tiny_trainer, train_steps

pytestmark = pytest.mark.usefixtures("process_state")
QUIET = ("log.tensorboard=false",)


def test_a_disk_that_is_full_for_the_log(
    before_step: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """/dev/full acts as a full disk."""
    logs: list[MetricsLog] = []
    init = MetricsLog.__init__

    def remember(self: MetricsLog, *arguments: Any) -> None:
        logs.append(self)
        init(self, *arguments)

    monkeypatch.setattr(MetricsLog, "__init__", remember)

    def fill_up(*_: object) -> None:
        logs[0]._file.close()
        logs[0]._file = open("/dev/full", "a")  # noqa: SIM115

    before_step(5, fill_up)
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET]) == 1
    run = only_run(tmp_path)
    line = error_line(capsys)
    assert line.startswith(f"{run}/metrics.jsonl: No space left on device; free space there")
    assert line.endswith("resume=auto")
    assert newest_intact(run / "checkpoints")[0] == folder_of(run / "checkpoints", 5)
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET, "resume=auto"]) == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 15


def test_a_disk_that_is_full_for_tensorboard(
    before_step: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A thread of TensorBoard writes the events; its error is one warning, and the run goes on."""

    def fill_up(*_: object) -> None:
        (events,) = only_run(tmp_path).glob("tb/*")
        events.unlink()
        events.symlink_to("/dev/full")

    before_step(4, fill_up)
    assert train.main([str(RECIPE), f"log.dir={tmp_path}"]) == 0
    printed = capsys.readouterr()
    (warning,) = [line for line in printed.out.splitlines() if line.startswith("warning: ")]
    assert "log.trackers: tensorboard" in warning and "No space left on device" in warning
    assert "Traceback" not in printed.out + printed.err
    assert json.loads((only_run(tmp_path) / "result.json").read_text())["steps"] == 15


def test_a_disk_that_is_full_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write = CheckpointWriter._write

    def fill_up(self: CheckpointWriter, snapshot: Any) -> None:
        if snapshot.step > 5:
            raise OSError(28, "No space left on device")
        write(self, snapshot)

    monkeypatch.setattr(CheckpointWriter, "_write", fill_up)
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET]) == 1
    run = only_run(tmp_path)
    line = error_line(capsys)
    assert line.startswith(f"{run}/checkpoints: ") and "[Errno 28] No space left on device" in line
    assert "free space" in line
    # the loop notices at the next log point that the thread has failed, not at the next checkpoint
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] in (9, 10)
    assert [path.name for path in steps_in(run / "checkpoints")] == ["step-00000005", "step-00000004"]


def test_a_disk_that_fills_up_within_a_checkpoint(tmp_path: Path):
    """By a limit on file sizes, the weights fit; the optimizer's state, twice as large, does not."""
    trainer = tiny_trainer(tiny_config("optimizer.name=adamw"))
    train_steps(trainer, 1)
    writer = CheckpointWriter(tmp_path / "checkpoints", "0" * 12)
    writer.save(trainer.state.snapshot())
    writer.wait()
    folder = folder_of(tmp_path / "checkpoints", 1)
    sizes = [(folder / name).stat().st_size for name in ("weights.safetensors", "state.pt")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(sizes) // 2, hard))
    try:
        trainer.state.step = 2
        writer.save(trainer.state.snapshot())
        with pytest.raises(TrainingError, match=r"checkpoints: .*\[Errno 27\] File too large.*free"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sizes[0] < sum(sizes) // 2 < sizes[1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_run_folder_that_goes_away(before_step: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def remove(*_: object) -> None:
        checkpoints = only_run(tmp_path) / "checkpoints"
        wanted = (folder_of(checkpoints, 5), checkpoints / "best.json")
        wait_until(lambda: all(path.exists() for path in wanted), "the checkpoint of step 5")
        shutil.rmtree(checkpoints.parent)

    before_step(6, remove)
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET]) == 1
    assert "checkpoints: " in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]  # no part of the run is written again


def test_an_error_in_the_thread_surfaces_once_and_at_the_end(tmp_path: Path):
    trainer = tiny_trainer(tiny_config())
    writer = CheckpointWriter(tmp_path / "gone" / "checkpoints", "0" * 12)
    writer.save(trainer.state.snapshot())
    wait_until(writer._pending.done, "the thread fails")  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match="checkpoints: "):
        writer.check()
    writer.check()
    writer.save(trainer.state.snapshot())
    with pytest.raises(TrainingError, match="checkpoints: "):
        writer.close()


def test_the_result_survives_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """If the result cannot be written, the same command with resume=auto writes it, and trains nothing."""
    arguments = [str(RECIPE), f"log.dir={tmp_path}", *QUIET]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", f"{only_run(tmp_path)}/result.json")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.records.RunResult.write", full)
        assert train.main(arguments) == 1
    assert error_line(capsys).startswith(f"{only_run(tmp_path)}/result.json: No space left on device")
    assert train.main([*arguments, "resume=auto"]) == 0
    assert json.loads((only_run(tmp_path) / "result.json").read_text())["steps"] == 15
