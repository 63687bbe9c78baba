"""A run from its first step to its result, in this process, and its evaluation and explanation afterwards."""

import contextlib
import gzip
import io
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import __main__ as cli
from pipeline import train
from pipeline.config import SLOW_ON_CPU, load_config
from pipeline.finalize import next_commands
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.process.command_line import pipeline_command
from pipeline.run.checkpoint import folder_of, newest_intact, steps_in, verify
from pipeline.training.step import Step, StepOutput
from tests.tiny import RECIPE, only_run

WANTED = {
    *(
        "test_accuracy",
        "best_test_accuracy",
        "test_seen",
        "train_loss",
        "num_parameters",
        "steps",
        "epochs",
        "images_per_sec",
        "step_ms",
    ),
    *(
        "data_wait_fraction",
        "compile_s",
        "train_s",
        "wall_s",
        "peak_memory_bytes",
        "skipped_steps",
        "recompilations",
        "loader",
        "device",
    ),
    *("world_size", "precision"),
}


@dataclass
class Run:
    """A finished run: its folder, its printed lines, the output of each step and the exit code."""

    path: Path
    printed: list[str]
    outputs: list[StepOutput]
    code: int

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.path / "result.json").read_text())

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]


def run_tiny(folder: Path, *overrides: str) -> Run:
    outputs: list[StepOutput] = []
    step = Step.__call__

    def watched(self: Step, batch: Any) -> StepOutput:
        outputs.append(step(self, batch))
        return outputs[-1]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(Step, "__call__", watched)
        code = train.main([str(RECIPE), f"log.dir={folder}", *overrides])
    return Run(only_run(folder), printed.getvalue().splitlines(), outputs, code)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Run:
    """Train as `tests/tiny.yaml` says: 3 epochs of 5 steps, logged every 2 steps, saved every 4."""
    return run_tiny(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Run:
    """Train 3 epochs of 3 steps with a holdout, in fp16, with Grad-CAM at the end, without TensorBoard."""
    keys = (
        "data.holdout=9",
        "precision.mode=fp16",
        "precision.init_scale=1024.0",
        "log.explain=true",
        "log.tensorboard=false",
    )
    return run_tiny(tmp_path_factory.mktemp("runs"), *keys)


def test_the_folder_holds_all_of_the_run(run: Run, held_out: Run):
    assert (run.code, held_out.code) == (0, 0)
    both = {
        ".lock",
        "checkpoints",
        "config.yaml",
        "env.json",
        "input.json",
        "metrics.jsonl",
        "result.json",
        "curves.png",
    }
    assert {path.name for path in run.path.iterdir()} == both | {"tb"}
    assert {path.name for path in held_out.path.iterdir()} == both | {"contact_sheet.png"}
    assert (run.path.parent / "latest").resolve() == run.path.resolve()
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", run.path.name)
    for picture in ("curves.png", "contact_sheet.png"):
        with Image.open(held_out.path / picture) as image:
            assert min(image.size) > 300


def test_profiled_steps_are_no_measure_of_speed(tmp_path: Path):
    brief = ("log.eval_every=100%", "log.checkpoint_every=100%", "log.tensorboard=false")
    run = run_tiny(tmp_path / "long", "--profile", "duration=20st", *brief)
    assert run.code == 0 and sum(line.startswith("profile, for Perfetto: ") for line in run.printed) == 1
    assert json.loads(gzip.decompress((run.path / "profile/trace.json.gz").read_bytes()))["traceEvents"]
    timed = {record["step"]: record["images_per_sec"] is not None for record in run.records("train")}
    # warm-up ends with step 3, the profile with step 13
    assert timed == {step: step > 14 for step in range(2, 22, 2)}
    assert run.result["images_per_sec"]["n"] == 3
    short = run_tiny(tmp_path / "short", "--profile", "duration=5st", *brief)
    assert short.code == 0 and any(line.startswith("no profile: it takes 10 steps") for line in short.printed)
    assert not (short.path / "profile").exists()


def test_the_config_in_the_folder_is_the_resolved_one(run: Run):
    assert load_config(run.path / "config.yaml") == load_config(RECIPE, [f"log.dir={run.path.parent}"])


def test_the_environment(run: Run):
    environment = json.loads((run.path / "env.json").read_text())
    assert (environment["device"], environment["world_size"], environment["gpu"]) == ("cpu", 1, None)
    assert {"torch", "accelerate", "numpy"} <= environment["packages"].keys()
    assert any(name.startswith("nvidia-dali") for name in environment["packages"])
    assert [environment[key] for key in ("deterministic", "tf32", "cudnn_benchmark")] == [False, True, True]
    assert {"commit", "dirty", "command", "python", "platform", "cpu_cores", "utc"} <= environment.keys()
    assert environment["cpu_threads"] == torch.get_num_threads()


def test_the_result_holds_what_is_promised(run: Run):
    result = run.result
    assert result.keys() >= WANTED
    assert result["images_per_sec"].keys() == {"median", "p10", "p90", "n"}
    assert (
        result["images_per_sec"]["p10"]
        <= result["images_per_sec"]["median"]
        <= result["images_per_sec"]["p90"]
    )
    exact = {
        "steps": 15,
        "epochs": 3,
        "test_seen": 8,
        "skipped_steps": 0,
        "recompilations": 0,
        "loader": "dali",
        "device": "cpu",
    }
    exact |= {"world_size": 1, "precision": "fp32", "num_parameters": 269_332}
    assert {key: result[key] for key in exact} == exact
    assert result["test_accuracy"] == result["test_correct"] / 8
    assert 0 < result["train_s"] < result["wall_s"] and 0 <= result["data_wait_fraction"] <= 1
    assert result["peak_memory_bytes"] > 2**26 and result["step_ms"] > 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_what_is_printed(run: Run, held_out: Run):
    first, *epochs, summary, curves, following, last = run.printed
    assert (
        "resnet20 on synthetic (40 train, 8 test), 1 x CPU, loader dali (CPU backend), fp32, compile none, "
        "batch 8, 15 steps" in first
    )
    line = (
        r"epoch   {}.00/3  lr 0\.\d{{5}}  train loss \d\.\d{{4}} acc +\d+\.\d\d%  +"
        r"([\d,]+ img/s +[\d.]+ it/s|warm-up)  "
        r"test loss .* \(\d/8\)  left 0:\d\d"
    )
    assert len(epochs) == 3
    for number, printed in enumerate(epochs, 1):
        assert re.fullmatch(line.format(number), printed)
    assert (
        summary.startswith(f"test accuracy {run.result['test_accuracy']:.2%} at the last step, best")
        and "on the test set" in summary
    )
    assert curves == f"curves: {run.path}/curves.png"
    tensorboard = pipeline_command("tensorboard", run.path.parent)
    assert following == f"next: {pipeline_command('evaluate', run.path)}; {tensorboard}"
    assert last == str(run.path)
    assert "31 train, 8 test, 9 held out" in held_out.printed[0]
    assert held_out.printed[1] == f"warning: {SLOW_ON_CPU}"
    assert "selected on the holdout set" in held_out.printed[-5]
    assert held_out.printed[-3] == f"Grad-CAM: {held_out.path}/contact_sheet.png"


@pytest.mark.parametrize("front_door", [False, True])
def test_what_to_do_next_is_this_very_run_with_another_rate(
    front_door: bool, monkeypatch: pytest.MonkeyPatch
):
    words = ["python", "-m", "pipeline.train", "configs/a.yaml", "optimizer.lr=0.3", "seed=1", "resume=auto"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "executable", "/my tools/bin/python")
    monkeypatch.delenv("NUM_PROCESSES", raising=False)
    if front_door:
        monkeypatch.setenv("QUICKRES_NUM_PROCESSES", "1")
    told = next_commands(Path("my runs/a-1"), load_config(RECIPE, ["optimizer.lr=0.3"]))
    python = "'/my tools/bin/python' -m"
    evaluate, again = (
        ("./launch.sh", "./launch.sh") if front_door else (f"{python} pipeline", f"{python} pipeline.train")
    )
    assert told == (
        f"next: {evaluate} evaluate 'my runs/a-1'; {evaluate} tensorboard 'my runs'; "
        f"change a key and run again, such as {again} configs/a.yaml seed=1 optimizer.lr=0.15"
    )


# --- metrics ------------------------------------------------------------------------------------------------


def test_the_cadence_of_the_log(run: Run):
    """Records come every 2 steps, counted from each evaluation, and at each evaluation."""
    assert [record["step"] for record in run.records("train")] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert [record["step"] for record in run.records("eval")] == [5, 10, 15]
    assert [record["epoch"] for record in run.records("eval")] == [1, 2, 3]


def test_a_record_is_the_mean_over_its_window(run: Run):
    previous = 0
    for record in run.records("train"):
        window = run.outputs[previous : record["step"]]
        assert record["loss"] == pytest.approx(sum(output.loss.item() for output in window) / len(window))
        assert record["accuracy"] == sum(output.correct.item() for output in window) / (8 * len(window))
        assert record.keys() == {
            "kind",
            "step",
            "epoch",
            "loss",
            "accuracy",
            "lr",
            "images_per_sec",
            "steps_per_sec",
            "loss_scale",
            "skipped_steps",
        }
        previous = record["step"]
    assert len(run.outputs) == previous == 15
    assert run.result["train_loss"] == run.records("train")[-1]["loss"]
    assert run.records("train")[-1]["lr"] == pytest.approx(
        0.1 * 1 / 11
    )  # of the last update: 4 of 15 steps were warm-up


def test_speed_is_not_told_of_warmup(run: Run):
    speeds = [record["images_per_sec"] for record in run.records("train")]
    assert speeds[0] is None
    assert all(speed is not None and speed > 0 for speed in speeds[2:])


def test_evaluations(run: Run, held_out: Run):
    for record in run.records("eval"):
        assert (record["split"], record["seen"]) == ("test", 8)
        assert record["accuracy"] == record["correct"] / 8 and math.isfinite(record["loss"])
    assert [(record["split"], record["seen"]) for record in held_out.records("eval")] == [
        ("holdout", 9),
        ("test", 8),
    ] * 3
    last = run.records("eval")[-1]
    assert (run.result["test_accuracy"], run.result["test_correct"]) == (last["accuracy"], last["correct"])


@pytest.mark.parametrize("which", ["run", "held_out"])
def test_best_is_the_first_of_the_highest(which: str, request: pytest.FixtureRequest):
    """The best step is of the holdout if there is one; its test accuracy is of the same step."""
    run: Run = request.getfixturevalue(which)
    split = "test" if which == "run" else "holdout"
    records = [record for record in run.records("eval") if record["split"] == split]
    best = max(records, key=lambda record: record["accuracy"])  # of several, the first
    at_best = next(
        record
        for record in run.records("eval")
        if record["step"] == best["step"] and record["split"] == "test"
    )
    result = run.result
    assert (result["best_step"], result["best_selected_on"], result["best_test_accuracy"]) == (
        best["step"],
        split,
        at_best["accuracy"],
    )
    named = json.loads((run.path / "checkpoints/best.json").read_text())
    assert named == {
        "accuracy": best["accuracy"],
        "step": best["step"],
        "selected_on": split,
        "test_accuracy": at_best["accuracy"],
    }


def test_fp16_is_in_the_log(held_out: Run):
    last = held_out.records("train")[-1]
    assert last["loss_scale"] <= 1024 and last["skipped_steps"] == held_out.result["skipped_steps"]
    assert held_out.result["precision"] == "fp16"


def test_tensorboard_reads_the_same(run: Run):
    accumulator = EventAccumulator(str(run.path / "tb"))
    accumulator.Reload()
    for group, records in (("train", run.records("train")), ("test", run.records("eval"))):
        found = [(event.step, event.value) for event in accumulator.Scalars(f"{group}/loss")]
        assert found == [(record["step"], pytest.approx(record["loss"])) for record in records]
    assert {"train/lr", "train/accuracy", "train/images_per_sec", "test/accuracy"} <= set(
        accumulator.Tags()["scalars"]
    )


# --- checkpoints, and what is done with a finished run ------------------------------------------------------


def test_the_kept_checkpoints(run: Run):
    checkpoints = run.path / "checkpoints"
    steps = {int(path.name.removeprefix("step-")) for path in steps_in(checkpoints)}
    assert steps == {12, 15} | {run.result["best_step"]}
    assert newest_intact(checkpoints) == (folder_of(checkpoints, 15), [])
    assert verify(folder_of(checkpoints, 15))["step"] == 15


@pytest.mark.parametrize("which", ["run", "held_out"])
def test_evaluate_reproduces_the_recorded_accuracy(
    which: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    run: Run = request.getfixturevalue(which)
    assert cli.main(["evaluate", str(run.path)]) == 0
    told, calibration, recorded = capsys.readouterr().out.splitlines()
    assert calibration.startswith("calibration   expected calibration error ")
    accuracy = f"{run.result['test_accuracy']:.4%}"
    assert told.startswith(
        f"test accuracy {accuracy} ({run.result['test_correct']}/8), loss {run.result['test_loss']:.4f}"
    )
    assert recorded == f"recorded      {accuracy}"
    again = evaluate_run(run.path)
    assert (again.correct, again.loss) == (run.result["test_correct"], run.result["test_loss"])


def test_evaluate_other_checkpoints(run: Run, capsys: pytest.CaptureFixture[str]):
    assert evaluate_run(run.path, "best").accuracy == run.result["best_test_accuracy"]
    assert evaluate_run(run.path.parent / "latest", "15").accuracy == run.result["test_accuracy"]
    assert (
        evaluate_run(run.path, overrides=("data.loader=reference", "data.eval_batch_size=3")).correct
        == run.result["test_correct"]
    )
    for checkpoint, told in (
        ("7", "no step 7; it "),
        ("newest", "'newest' is neither last, best nor a step"),
        ("²", "neither"),
    ):
        assert cli.main(["evaluate", str(run.path), "--checkpoint", checkpoint]) == 2
        assert told in capsys.readouterr().err


def test_explain_takes_options_and_keys_in_any_order(run: Run, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["explain", str(run.path), "--count", "3", "data.loader=reference"]) == 0
    sheet = run.path / "explained.png"
    assert capsys.readouterr().out == f"{sheet}\n"
    assert sheet.is_file()
    sheet.unlink()
