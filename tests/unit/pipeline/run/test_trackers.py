"""Trackers: TensorBoard, wandb offline, MLflow's local store and trackio, each written and read back; none of
them stops a run."""

import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import train
from pipeline.errors import UserError
from pipeline.run import trackers
from pipeline.run.folder import RunFolder
from pipeline.run.records import RunResult
from pipeline.run.tracker_kinds import KINDS, Kind
from pipeline.run.trackers import Tracker, check_installed
from tests.tiny import RECIPE, a_train_record, an_eval_record, only_run
from tests.trackers import MARKS, local_stores, open_trackers, scalars  # noqa: F401

pytestmark = MARKS
FIGURES = {"test_loss": 0.5, "test_accuracy": 0.75, "test_correct": 3, "test_seen": 4}
BEST = {"best_test_accuracy": 0.75, "best_step": 4, "best_selected_on": "test"}
SPEED = {"images_per_sec": {"median": 64.0, "p10": 60.0, "p90": 70.0, "n": 2}, "compile_s": 0.0}
SIZE = {"steps": 4, "epochs": 1.0, "train_s": 1.0, "wall_s": 2.0, "num_parameters": 9, "peak_memory_bytes": 1}
MACHINE = {
    "loader": "dali",
    "device": "cpu",
    "world_size": 1,
    "precision": "fp32",
    "batch_size": 8,
    "seed": 3,
}
RESULT = FIGURES | BEST | SPEED | SIZE | MACHINE


def write_a_run(folder: Path, *names: str) -> None:
    said: list[str] = []
    opened = open_trackers(folder, *names, said=said)
    opened.write(a_train_record(2, loss=0.25))
    opened.write(an_eval_record(4))
    opened.write_result(RunResult.model_validate(RESULT))
    Image.new("RGB", (6, 4), (250, 0, 0)).save(folder / "contact_sheet.png")
    (folder / "report.html").write_text("<html><body>the report</body></html>")
    run = RunFolder(folder)
    files = {"contact_sheet": run.contact_sheet, "report": run.report, "curves": run.curves}
    opened.add_pictures(files, 4)
    opened.close()
    assert said == []


# --- each tracker ---------------------------------------------------------------------------------------


def test_tensorboard_has_the_scalars_and_one_sheet(tmp_path: Path):
    write_a_run(tmp_path / "a", "tensorboard")
    found = scalars(tmp_path / "a")
    assert (found["train/loss"], found["test/loss"]) == ([(2, 0.25)], [(4, 0.5)])
    assert "test/correct" not in found and "train/epoch" not in found
    accumulator = EventAccumulator(str(tmp_path / "a/tb"), {"images": 0})
    accumulator.Reload()
    assert accumulator.Tags()["images"] == ["contact_sheet"]
    (image,) = accumulator.Images("contact_sheet")
    assert (image.width, image.height, image.step) == (6, 4, 4)


def test_an_accuracy_of_views_has_its_name_in_tensorboard(tmp_path: Path):
    changes = {"ema_accuracy": 0.25, "ema_accuracy_views": {"mirror_shift_25pct": 0.75}}
    opened = open_trackers(tmp_path, "tensorboard")
    opened.write(an_eval_record(2).model_copy(update=changes))
    opened.close()
    assert scalars(tmp_path)["test/ema_accuracy_mirror_shift_25pct"] == [(2, 0.75)]


def test_a_flush_is_enough_for_tensorboard(tmp_path: Path):
    opened = open_trackers(tmp_path, "tensorboard")
    opened.write(a_train_record(2))
    opened.flush()
    assert scalars(tmp_path)["train/loss"] == [(2, 0.5)]
    opened.close()


def test_tensorboard_is_cut_back_to_the_step_that_a_run_continues_from(tmp_path: Path):
    for steps, resume_step, loss in (((2, 4, 6, 8), 0, 1.0), ((6, 8, 10), 4, 5.0)):
        opened = open_trackers(tmp_path, "tensorboard", resume_step=resume_step)
        for step in steps:
            opened.write(a_train_record(step, loss=loss))
        opened.close()
    assert scalars(tmp_path)["train/loss"] == [(2, 1), (4, 1), (6, 5), (8, 5), (10, 5)]


def test_without_trackers_there_is_nothing(tmp_path: Path):
    write_a_run(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["contact_sheet.png", "report.html"]


def read_when_written(record: Path, last: bytes) -> bytes:
    """Return the content of a file of wandb, whose process of its own may write it a little after the end."""
    until = time.monotonic() + 30
    while last not in (content := record.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    return content


def test_wandb_offline(tmp_path: Path):
    write_a_run(tmp_path / "a", "wandb")
    (folder,) = (tmp_path / "a/wandb").glob("offline-run-*")
    (record,) = folder.glob("*.wandb")
    content = read_when_written(record, b"contact_sheet")
    for word in (b"train/loss", b"test/accuracy", b"final/test_accuracy", b"final/images_per_sec.median"):
        assert word in content, word
    assert b"optimizer.lr" in content and b"contact_sheet" in content
    (page,) = folder.glob("files/media/html/report*.html")
    assert "the report" in page.read_text()
    assert len(list(folder.glob("files/media/images/contact_sheet*.png"))) == 1


def test_mlflow_in_a_local_store_and_continued(tmp_path: Path):
    import mlflow

    write_a_run(tmp_path / "a", "mlflow")
    said: list[str] = []
    opened = open_trackers(tmp_path / "a", "mlflow", resume_step=4, said=said)
    opened.write(a_train_record(6, loss=0.125))
    opened.close(failed=True)
    assert said == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'quickres'")
    (run,) = client.search_runs([experiment.experiment_id])  # continued, not begun anew
    assert (run.info.run_name, run.info.status) == ("a", "FAILED")
    assert run.data.params["optimizer.lr"] == "0.25" and run.data.metrics["final/test_accuracy"] == 0.75
    losses = [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses == [(2, 0.25), (6, 0.125)]
    files = {path.name for path in (tmp_path / "mlflow-files").rglob("*") if path.is_file()}
    assert files == {"contact_sheet.png", "report.html"}
    write_a_run(tmp_path / "elsewhere" / "b", "mlflow")  # by the same process, which MLflow gives a store
    assert (tmp_path / "elsewhere" / "mlflow.db").is_file()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_continued_run_is_the_same_run(name: str, tmp_path: Path):
    said: list[str] = []
    for resume_step in (0, 4):
        opened = open_trackers(tmp_path / "a", name, resume_step=resume_step, said=said)
        opened.write(a_train_record(resume_step + 2))
        opened.close()
    assert said == []
    if name == "wandb":
        folders = [path.name.split("-") for path in (tmp_path / "a/wandb").glob("offline-run-*")]
        assert len(folders) == 2 and len({name[3] for name in folders}) == 1  # the id
    else:
        with sqlite3.connect(tmp_path / "trackio/quickres.db") as database:
            rows = database.execute("select run_name, step from metrics order by step").fetchall()
        assert rows == [("a", 2), ("a", 6)]


def test_trackio(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_a_run(tmp_path / "a", "trackio")
    assert capsys.readouterr().out == ""
    with sqlite3.connect(tmp_path / "trackio/quickres.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = [json.loads(row[0]) for row in database.execute("select config from configs")]
    values = {(step, key): value for _, step, text in rows for key, value in json.loads(text).items()}
    assert {name for name, *_ in rows} == {"a"}
    assert (values[2, "train/loss"], values[4, "final/test_accuracy"]) == (0.25, 0.75)
    assert configs[0]["optimizer.lr"] == 0.25
    assert {"contact_sheet", "report"} <= {key for _, key in values}


def test_trackio_without_its_folder_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    (tmp_path / "file").touch()
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "file" / "trackio")
    said = write_some(tmp_path / "a")
    assert len(said) == 1 and "log.trackers: trackio gets no more records" in said[0]
    assert "Not a directory" in said[0] and not len(recwarn)


def test_records_that_trackio_loses_are_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    """It tells of a full disk by warnings of Python, from threads of its own."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trackio.sqlite_storage.SQLiteStorage.bulk_log", full)
    said = write_some(tmp_path / "a")
    assert len(said) == 1 and "No space left on device" in said[0] and not len(recwarn)


def write_some(folder: Path) -> list[str]:
    """Send records to trackio; return what was said."""
    said: list[str] = []
    opened = open_trackers(folder, "trackio", said=said)
    opened.write(a_train_record(2))
    opened.write(an_eval_record(4))
    opened.close()
    assert opened.working == []
    return said


# --- a tracker that fails -------------------------------------------------------------------------------


class Broken(Kind):
    """A tracker that fails where it is told to."""

    def __init__(self, where: str, error: BaseException):
        self.where, self.error = where, error

    def options(self, config: Any, run: Any, saved: Any, resume_step: int) -> dict[str, Any]:
        self.act("start")
        return {}

    def act(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def add_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        self.act("picture")

    def add_page(self, tracker: Any, name: str, path: Path, step: int) -> None:
        self.act("page")

    def finish(self, tracker: Any, failed: bool) -> None:
        self.act("finish")


@pytest.mark.parametrize("where", ["start", "picture", "page", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no network\nat all"), SystemExit(1)], ids=["error", "exit"])
def test_a_tracker_that_fails_is_one_warning(
    where: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = Broken(where, error)
    monkeypatch.setattr(trackers, "KINDS", {**KINDS, "wandb": broken})
    monkeypatch.setattr(trackers, "_log", lambda *_: None)
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda *_: None)
    monkeypatch.setattr("accelerate.Accelerator.get_tracker", lambda *_: None)
    said: list[str] = []
    opened = open_trackers(tmp_path, "wandb", said=said)
    for step in range(1, 4):
        opened.write(a_train_record(step))
    for name in ("contact_sheet.png", "report.html"):
        (tmp_path / name).touch()
    run = RunFolder(tmp_path)
    opened.add_pictures({"contact_sheet": run.contact_sheet, "report": run.report}, 3)
    opened.close()
    opened.close()
    (warning,) = said
    assert warning.startswith(
        "warning: log.trackers: wandb gets no more records of this run, which goes on ("
    )
    assert "no network)" in warning or "SystemExit: 1)" in warning


def test_a_tracker_that_does_not_keep_up_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "_BACKLOG", 3)
    hang = threading.Event()
    tracker = Tracker("wandb", lambda: hang.wait(30))
    for _ in range(5):
        tracker.do(lambda _: None)
    assert "3 records wait" in tracker.problem
    hang.set()


def test_a_package_that_is_not_installed_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    find = trackers.importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    with pytest.raises(UserError, match=r"wandb.*pip install -e '\.\[wandb\]'.*\[tensorboard\]"):
        check_installed(["tensorboard", "wandb"])
    keys = [f"log.dir={tmp_path}/runs", "log.trackers=[tensorboard,wandb]"]
    assert train.main([str(RECIPE), *keys]) == 2
    assert "wandb" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_run_names_the_stores_of_trackers_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    keys = [f"log.dir={tmp_path}", "log.trackers=[mlflow,trackio]", "duration=2st"]
    (tmp_path / "file").touch()
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "file" / "trackio")
    assert train.main([str(RECIPE), *keys]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"mlflow: mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in printed
    assert not any(line.startswith("trackio: ") for line in printed)


# --- a whole run ----------------------------------------------------------------------------------------


def test_a_run_with_all_trackers_one_of_them_without_its_server(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mlflow.db").touch()  # of earlier runs
    keys = [f"log.dir={tmp_path}/runs", "log.trackers=[tensorboard,wandb,mlflow,trackio]", "duration=1ep"]
    assert train.main([str(RECIPE), *keys]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if "warning: log.trackers: mlflow" in line]) == 1
    assert "Retrying" not in caplog.text  # a second try is no second warning
    (tmp_path / "runs/mlflow.db").unlink()
    run = only_run(tmp_path / "runs")
    assert f"wandb: wandb sync {run}/wandb/offline-run-*" in printed
    assert not any(line.startswith("mlflow: ") for line in printed)
    losses = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line
    ]
    assert scalars(run)["train/loss"] == [(item["step"], pytest.approx(item["loss"])) for item in losses]
    with sqlite3.connect(tmp_path / "trackio/quickres.db") as database:
        assert database.execute("select count(*) from metrics").fetchone()[0] >= 3
