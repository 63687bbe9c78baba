"""Records of a run: the metrics log, cut back to where a run continues, and its JSON files."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.atomic_io import read_json
from pipeline.errors import UserError
from pipeline.run.environment_record import changed_data, read_environment, record_environment
from pipeline.run.folder import RunFolder
from pipeline.run.metrics_log import MetricsLog
from pipeline.run.records import EvalRecord, TrainRecord
from tests.tiny import a_train_record, an_eval_record


def write(folder: Path, *records: TrainRecord | EvalRecord, resume_step: int = 0) -> None:
    log = MetricsLog(RunFolder(folder), resume_step)
    for record in records:
        log.write(record)
    log.close()


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_written_at_once(tmp_path: Path):
    log = MetricsLog(RunFolder(tmp_path), 0)
    log.write(a_train_record(2))
    assert read(tmp_path) == [a_train_record(2).to_json()]  # a run that is killed now has it
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_figures_that_json_cannot_hold_are_null(tmp_path: Path):
    write(tmp_path, a_train_record(2, loss=float("nan")))
    assert read(tmp_path)[0]["loss"] is None


def test_figures_that_were_not_asked_for_are_left_out():
    values = an_eval_record(2).to_json()
    assert list(values) == ["kind", "split", "step", "epoch", "loss", "accuracy", "correct", "seen"]
    assert "accuracy_flip_tta" in an_eval_record(2).model_copy(update={"accuracy_flip_tta": 0.5}).to_json()


def test_an_accuracy_is_named_after_its_views(tmp_path: Path):
    name = "mirror_shift_25pct"
    changes = {"accuracy_views": {name: 0.5}, "ema_accuracy": 0.25, "ema_accuracy_views": {name: 0.75}}
    record = an_eval_record(2).model_copy(update=changes)
    write(tmp_path, record)
    (values,) = read(tmp_path)
    assert (values[f"accuracy_{name}"], values[f"ema_accuracy_{name}"]) == (0.5, 0.75)
    assert not any(key.endswith("views") for key in values)
    assert EvalRecord.of(values, tmp_path) == record
    shown = "with mirror and shift (least sure 25%)"
    assert record.other_accuracies() == {shown: 0.5, "ema": 0.25, f"ema {shown}": 0.75}


def test_it_is_cut_back_to_the_step_that_a_run_continues_from(tmp_path: Path):
    write(tmp_path, *(a_train_record(step, loss=1 / step) for step in (2, 4, 6, 8)))
    write(tmp_path, *(a_train_record(step, loss=5.0) for step in (6, 8, 10)), resume_step=4)
    assert [item["step"] for item in read(tmp_path)] == [2, 4, 6, 8, 10]
    assert [item["loss"] for item in read(tmp_path)] == [1 / 2, 1 / 4, 5, 5, 5]


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
    write(tmp_path, a_train_record(2), a_train_record(4))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(garbage)
    write(tmp_path, a_train_record(6), resume_step=4)
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
        record_environment(
            RunFolder(tmp_path), {"command": ["b"]}, step, read_environment(tmp_path / "env.json")
        )
    continued = [{"step": step, "command": ["b"]} for step in (3, 5)]
    assert read_json(tmp_path / "env.json") == {"command": ["a"], "continued": continued}


@pytest.mark.parametrize("continued", [3, "x", {}, [3], [{"step": "x", "command": 5}]])
def test_an_environment_of_another_shape_is_named(tmp_path: Path, continued: Any):
    path = tmp_path / "env.json"
    path.write_text(json.dumps({"command": ["a"], "continued": continued}))
    with pytest.raises(UserError, match=r"env\.json: .*continued"):
        read_environment(path)


def test_images_that_have_changed_are_told():
    used, now = ({"train": train, "held_out": 0, "test": 5, "digest": "0"} for train in (9, 8))
    assert changed_data({"data": used}, used) is None and changed_data({}, used) is None
    warning = changed_data({"data": now, "continued": [{"data": used}]}, now)
    assert warning is not None and "9 train and 5 test before, 8 and 5 now" in warning
