"""Run folders: opened, found again, refused; and the metrics log, cut back to where a run continues."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.atomic_io import read_json
from pipeline.config import config_hash, load_config
from pipeline.errors import UserError
from pipeline.run.checkpoint import CheckpointWriter, folder_of
from pipeline.run.folder import RunFolder, find_run
from pipeline.run.lock import RunLock
from pipeline.run.records import MetricsLog, TrainRecord, record_environment
from tests.tiny import a_train_record, an_eval_record, open_and_release, tiny_config, tiny_trainer


def config_in(folder: Path, *overrides: str):
    return tiny_config(f"log.dir={folder}", *overrides)


# --- opening ------------------------------------------------------------------------------------------------


def test_a_new_run(tmp_path: Path):
    config = config_in(tmp_path / "runs")
    run = open_and_release(config)
    assert re.fullmatch(r"recipe-\d{8}-\d{6}", run.path.name)
    assert load_config(run.path / "config.yaml") == config
    assert (run.resume_from, run.warnings) == (None, ())
    latest = tmp_path / "runs/latest"
    assert (
        latest.is_symlink()
        and latest.resolve() == run.path.resolve()
        and not os.path.isabs(os.readlink(latest))
    )


def test_two_runs_of_one_second(tmp_path: Path):
    first, second, named = (
        open_and_release(config_in(tmp_path, *keys)).path for keys in ((), (), ("log.name=other",))
    )
    assert first != second and named.name.startswith("other-")
    assert (tmp_path / "latest").resolve() == named.resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["latest", first.name, second.name, named.name]
    )


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"log.dir: .*file.* cannot be written .*choose another folder with log.dir="
    ):
        open_and_release(config_in(tmp_path / "file"))


# --- finding again ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    """Checkpoints of steps 1 and 2, to be linked into run folders."""
    folder = tmp_path_factory.mktemp("checkpoints")
    writer, trainer = CheckpointWriter(folder, "hash"), tiny_trainer(tiny_config())
    for trainer.state.step in (1, 2):
        writer.save(trainer.state.snapshot())
    writer.close()
    return folder


class Runs:
    """Makes runs in a folder, in any state and order."""

    def __init__(self, folder: Path, checkpoint: Path):
        self.folder, self.checkpoint, self.age = folder, checkpoint, 0

    def make(self, *overrides: str, steps: tuple[int, ...] = (1, 2), finished: bool = False) -> Path:
        config = config_in(self.folder, *overrides)
        run = open_and_release(config)
        for step in steps:
            source, target = (
                folder_of(checkpoints, step) for checkpoints in (self.checkpoint, run.checkpoints)
            )
            target.mkdir(parents=True)
            for name in ("weights.safetensors", "state.pt"):
                os.symlink(source / name, target / name)
            manifest = read_json(source / "manifest.json") | {"config_hash": config_hash(config)}
            (target / "manifest.json").write_text(json.dumps(manifest))
        if finished:
            run.result.write_text("{}")
        self.age += 1
        os.utime(run.path / "config.yaml", (10**9 + self.age, 10**9 + self.age))
        return run.path

    def resume(self, value: str = "auto", *overrides: str, folder: Path | None = None) -> RunFolder:
        return open_and_release(config_in(folder or self.folder, f"resume={value}", *overrides))


@pytest.fixture
def runs(tmp_path: Path, checkpoint: Path) -> Runs:
    return Runs(tmp_path, checkpoint)


def test_auto_takes_the_newest_unfinished_run_of_the_same_config(runs: Runs):
    runs.make()
    wanted = runs.make()
    runs.make("optimizer.lr=0.2")
    runs.make(finished=True)
    runs.make(steps=())
    found = runs.resume()
    assert (found.path.resolve(), found.warnings) == (wanted.resolve(), ())
    assert found.resume_from == folder_of(found.checkpoints, 2)
    assert (runs.folder / "latest").resolve() == wanted.resolve()


@pytest.mark.parametrize("keys", [("log.name=other",), ("log.explain=true", "log.log_every=1st")])
def test_where_and_how_a_run_is_written_is_not_its_config(runs: Runs, keys: tuple[str, ...]):
    assert runs.make().resolve() == runs.resume("auto", *keys).path.resolve()


@pytest.mark.parametrize("value", ["none", "auto"])
def test_a_folder_in_the_place_of_the_link(runs: Runs, value: str):
    """As where runs were copied by what follows links; a copied run would be the newest unfinished one."""
    run = runs.make()
    (runs.folder / "latest").unlink()
    shutil.copytree(run, runs.folder / "latest")
    with pytest.raises(UserError, match=r"latest: is a folder.*; rename or remove it"):
        runs.resume(value)
    assert not list(runs.folder.glob(".latest-*"))


def test_auto_starts_anew_where_nothing_matches(runs: Runs):
    made = {runs.make("seed=1"), runs.make(finished=True), runs.make(steps=())}
    (runs.folder / "no-run").mkdir()
    broken = runs.make()
    (broken / "config.yaml").write_text("of: another version\n")
    found = runs.resume()
    assert found.resume_from is None and found.path not in {*made, broken}
    assert runs.resume(folder=runs.folder / "none").resume_from is None


@pytest.mark.parametrize("value", ["auto", "latest"])
def test_a_run_that_is_being_trained_is_left_alone(runs: Runs, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.run.lock._PATIENCE_S", 0.2)
    path = runs.make(steps=())  # before its first checkpoint
    with RunLock() as lock:
        lock.take(path)
        told = (
            rf"resume: .*{path.name} .* process {os.getpid()} on .*; wait for its end, or .* with resume=none"
        )
        with pytest.raises(UserError, match=told):
            runs.resume("auto" if value == "auto" else str(path))
        assert runs.make().is_dir()  # one beside it
    assert runs.resume().resume_from is not None


def test_auto_says_what_is_wrong_where_it_starts_anew(runs: Runs):
    path = runs.make()
    for step in (1, 2):
        (folder_of(path / "checkpoints", step) / "state.pt").unlink()
    found = runs.resume()
    assert found.resume_from is None
    *damaged, last = found.warnings
    assert [
        f"step-{step:08d}/state.pt: missing" in text for step, text in zip((2, 1), damaged, strict=True)
    ] == [True, True]
    assert last.startswith("resume=auto: ") and "starting a new run" in last


def test_a_path_is_resumed(runs: Runs):
    older, newer = runs.make(), runs.make()
    assert runs.resume(str(older)).path == older
    assert runs.resume(str(runs.folder / "latest")).path.resolve() == older.resolve()  # it points there now
    assert newer.is_dir()


@pytest.mark.parametrize(
    ("make", "overrides", "told"),
    [
        ({"finished": True}, (), r"is finished; see .*result.json, or start a new run with resume=none"),
        (
            {},
            ("optimizer.lr=0.2", "seed=9", "runtime.hang_timeout_s=60"),
            r"another config \(different: seed, optimizer.lr\); give the same keys",
        ),
        ({"steps": ()}, (), r"has no intact checkpoint; start a new run with resume=none"),
    ],
)
def test_a_path_that_cannot_be_resumed(
    runs: Runs, make: dict[str, Any], overrides: tuple[str, ...], told: str
):
    path = runs.make(**make)
    with pytest.raises(UserError, match=rf"^resume: {path} .*{told}"):
        runs.resume(str(path), *overrides)


def test_a_run_that_hung_is_resumed_with_more_patience(runs: Runs):
    path = runs.make()
    for value in ("auto", str(path)):
        assert runs.resume(value, "runtime.hang_timeout_s=7200").path == path


def test_a_path_that_is_no_run(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(runs.folder)
    known = runs.make()
    with pytest.raises(
        UserError, match=rf"nowhere: not a run folder \(no config.yaml in it\). Known: .*{known.name}"
    ):
        runs.resume(str(runs.folder / "nowhere"))
    with pytest.raises(
        UserError, match=rf"Known: .*{known.name}"
    ):  # the folder of the runs, as one that forgets `/latest` gives it
        find_run(runs.folder)
    with pytest.raises(UserError, match="none yet"):
        find_run(runs.folder / "deep/nowhere/at-all")


def test_damaged_checkpoints_are_passed_over_with_a_warning(runs: Runs):
    path = runs.make(steps=(1,))
    damaged = folder_of(path / "checkpoints", 3)
    damaged.mkdir()
    found = runs.resume()
    assert found.resume_from == folder_of(path / "checkpoints", 1)
    assert len(found.warnings) == 1 and str(damaged) in found.warnings[0]
    assert config_hash(load_config(found.path / "config.yaml")) == config_hash(config_in(runs.folder))


# --- metrics ------------------------------------------------------------------------------------------------


def write(folder: Path, *records: TrainRecord, resume_step: int = 0, tensorboard: bool = True) -> None:
    log = MetricsLog(RunFolder(folder), tensorboard, resume_step)
    for record in records:
        log.write(record)
    log.close()


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    accumulator = EventAccumulator(str(folder / "tb"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_metrics_are_written_at_once_to_both(tmp_path: Path):
    log = MetricsLog(RunFolder(tmp_path), True, 0)
    log.write(a_train_record(2))
    assert read(tmp_path) == [a_train_record(2).to_json()]  # a run that is killed now has it
    log.write(an_eval_record(2))
    log.close()
    scalars = events(tmp_path)
    assert (scalars["train/loss"], scalars["test/loss"]) == ([(2, 0.5)], [(2, 0.5)])
    assert "test/correct" not in scalars and "train/epoch" not in scalars


def test_figures_that_json_cannot_hold_are_null(tmp_path: Path):
    write(tmp_path, a_train_record(2, loss=float("nan")), tensorboard=False)
    assert read(tmp_path)[0]["loss"] is None


def test_figures_that_were_not_asked_for_are_left_out():
    values = an_eval_record(2).to_json()
    assert list(values) == ["kind", "split", "step", "epoch", "loss", "accuracy", "correct", "seen"]
    assert "accuracy_flip_tta" in an_eval_record(2).model_copy(update={"accuracy_flip_tta": 0.5}).to_json()


def test_a_flush_is_enough_for_tensorboard(tmp_path: Path):
    log = MetricsLog(RunFolder(tmp_path), True, 0)
    log.write(a_train_record(2))
    log.flush()
    assert events(tmp_path)["train/loss"] == [(2, 0.5)]
    log.close()


def test_without_tensorboard(tmp_path: Path):
    write(tmp_path, a_train_record(1), tensorboard=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_both_are_cut_back_to_the_step_that_a_run_continues_from(tmp_path: Path):
    write(tmp_path, *(a_train_record(step, loss=1 / step) for step in (2, 4, 6, 8)))
    write(tmp_path, *(a_train_record(step, loss=5.0) for step in (6, 8, 10)), resume_step=4)
    assert [item["step"] for item in read(tmp_path)] == [2, 4, 6, 8, 10]
    assert [item["loss"] for item in read(tmp_path)] == [1 / 2, 1 / 4, 5, 5, 5]
    assert events(tmp_path)["train/loss"] == [(2, 1 / 2), (4, 1 / 4), (6, 5), (8, 5), (10, 5)]


@pytest.mark.parametrize(
    "garbage",
    [
        b'{"kind": "train", "st',
        b"5\n",
        b"[]\n",
        b'{"kind": "train"}\n',
        b'{"step": null}\n',
        b"\0\0\0",
        b"\xa1\xff\n{",
    ],
)
def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path, garbage: bytes):
    write(tmp_path, a_train_record(2), a_train_record(4), tensorboard=False)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(garbage)
    write(tmp_path, a_train_record(6), resume_step=4, tensorboard=False)
    assert [item["step"] for item in read(tmp_path)] == [2, 4, 6]


def test_a_json_file_that_is_none(tmp_path: Path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="is the run finished"):
        read_json(tmp_path / "result.json")
    with pytest.raises(
        UserError, match=r"none\.json: cannot be read \(No such file or directory\); is the run finished\?$"
    ):
        read_json(tmp_path / "none.json")


def test_the_environment_of_each_process_that_continued_a_run(tmp_path: Path):
    record_environment(RunFolder(tmp_path), {"command": ["a"]}, step=0)
    for step in (3, 5):
        record_environment(RunFolder(tmp_path, resume_from=tmp_path), {"command": ["b"]}, step)
    continued = [{"step": step, "command": ["b"]} for step in (3, 5)]
    assert read_json(tmp_path / "env.json") == {"command": ["a"], "continued": continued}
