"""Checks the end of a run on the digits: report, TensorBoard, and that no failure there fails the run."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import __main__ as cli
from pipeline import train
from pipeline.data.datasets import load as datasets
from pipeline.finalize import describe_result
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.inference.predictions import Predictions
from pipeline.process.command_line import pipeline_command
from pipeline.process.signals import StopSignal
from pipeline.run.records import RunResult
from tests.patience import PATIENCE_S
from tests.tiny import RECIPE, only_run
from tests.unit.pipeline.report.pages import SECTIONS, Page

DIGITS = (
    "data.dataset=digits",
    "data.eval_batch_size=360",
    "data.batch_size=64",
    "duration=6st",
    "log.eval_every=3st",
)


def run_digits(folder: Path, *overrides: str) -> tuple[Path, int, list[str]]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = train.main([str(RECIPE), f"log.dir={folder}", *DIGITS, *overrides])
    return only_run(folder), code, printed.getvalue().splitlines()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    with (
        patch.object(datasets, "_read", wraps=datasets._read) as read,
        patch.object(StopSignal, "idle", autospec=True, side_effect=StopSignal.idle) as idle,
    ):
        path, code, printed = run_digits(
            tmp_path_factory.mktemp("runs"), "log.report=true", "log.explain=true"
        )
    assert code == 0 and read.call_count == 1, "the data set is read once in a run"
    assert printed[-3] == f"report: {path}/report.html"
    activities = [call.args[2] for call in idle.call_args_list]
    assert ["--refresh" in text for text in activities[-3:]] == [True, False, False], (
        "its report is there after the pictures"
    )
    return path


def test_every_run_ends_with_its_report(run: Path):
    page = Page(run / "report.html")
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    result = json.loads((run / "result.json").read_text())
    for words in (
        run.name,
        f"{result['test_correct']} of 360",
        "resnet20 on digits",
        "Bottleneck: ",
        "No step was skipped.",
        "data.dataset",
    ):
        assert words in page.words, words
    assert page.source.count('<img class="small"') == 20 == page.source.count("data:image/webp")
    assert len(page.source) < 1_000_000


def test_the_predictions_are_those_of_the_checkpoint(run: Path):
    predictions = Predictions.load(run)
    assert predictions is not None
    assert (predictions.rank == 0).sum() == evaluate_run(run).correct == np.trace(predictions.confusion)
    assert (predictions.rank[predictions.shown] > 0).all() and (
        np.diff(predictions.confidence[predictions.shown]) <= 0
    ).all()


def without_times(page: bytes) -> bytes:
    """Return a page without the parts of the time, which differ: drawing the page is one of them."""
    times = re.compile(rb"<p>From the command to .*?</ul>", re.DOTALL)
    assert times.search(page)
    return times.sub(b"", page)


def test_the_parts_of_the_time_add_up(run: Path):
    result = json.loads((run / "result.json").read_text())
    timeline = result["timeline"]
    assert timeline.pop("exit") is None  # only launch.sh can time it
    assert next(iter(timeline)) == "imports" and list(timeline)[-1] == "finishing"
    before = sum(seconds for part, seconds in timeline.items() if part != "finishing")
    assert before == pytest.approx(result["wall_s"], abs=0.1)
    assert timeline["compile"] + timeline["training"] == pytest.approx(result["train_s"], abs=0.5)
    page = (run / "report.html").read_text()
    assert "From the command to the report: " in page
    for words in ("importing torch", "reading the data set", "steady training", "pictures and report"):
        assert words in page, words


def test_it_is_drawn_again_without_data_and_checkpoints(run: Path, tmp_path: Path):
    before = (run / "report.html").read_bytes()
    for name in ("config.yaml", "env.json", "result.json", "metrics.jsonl", "predictions.npz"):
        (tmp_path / run.name).mkdir(exist_ok=True)
        (tmp_path / run.name / name).write_bytes((run / name).read_bytes())
    assert cli.main(["report", str(tmp_path / run.name)]) == 0
    assert without_times((tmp_path / run.name / "report.html").read_bytes()) == without_times(before)


def test_refresh_predicts_anew(run: Path):
    page, predictions = (run / "report.html").read_bytes(), (run / "predictions.npz").read_bytes()
    (run / "predictions.npz").unlink()
    assert cli.main(["report", str(run), "--refresh"]) == 0
    assert (run / "predictions.npz").read_bytes() == predictions
    assert without_times((run / "report.html").read_bytes()) == without_times(page)


def test_tensorboard_reads_graph_images_and_hparams(run: Path):
    accumulator = EventAccumulator(str(run / "tb"), {"images": 0, "scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    assert {
        "train/lr",
        "train/loss_scale",
        "train/images_per_sec",
        "train/steps_per_sec",
        "test/accuracy",
    } <= set(tags["scalars"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [(record["step"], pytest.approx(record["lr"])) for record in records if record["kind"] == "train"]
    assert [(event.step, event.value) for event in accumulator.Scalars("train/lr")] == rates
    assert sorted(tags["images"]) == ["contact_sheet", "curves"]  # fixed tags: runs stand side by side
    assert accumulator.Images("contact_sheet")[0].width > 1000
    assert tags["graph"] and b"Conv2d" in accumulator.Graph().SerializeToString()
    hparams = accumulator.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"data.dataset" in hparams and b"runtime.channels_last" not in hparams  # what is not the default
    (accuracy,) = accumulator.Scalars("hparam/test_accuracy")
    assert accuracy.value == pytest.approx(json.loads((run / "result.json").read_text())["test_accuracy"])


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize(
    "broken",
    [
        "pipeline.explain.analyse_test_set.examine",
        "pipeline.report.page.write_report",
        "pipeline.inference.trained_model.load_trained",
    ],
)
def test_what_fails_after_training_is_told_and_no_more(broken: str, tmp_path: Path):
    with patch(broken, side_effect=RuntimeError("out of luck")):
        path, code, printed = run_digits(tmp_path, "log.report=true", "log.tensorboard=false")
    assert code == 0 and printed[-1] == str(path)
    (warning,) = [line for line in printed if "out of luck" in line]
    assert warning.startswith("warning: ") and "RuntimeError" in warning
    assert json.loads((path / "result.json").read_text())["test_seen"] == 360
    assert (path / "report.html").is_file() == ("write_report" not in broken)


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("made", [True, False])
def test_a_signal_at_the_end_is_answered_by_what_is_there(made: bool, tmp_path: Path):
    """Before the pictures, in the wait for the trackers, and after it."""
    error = None if made else RuntimeError("out of luck")
    with (
        patch("pipeline.report.page.write_report", return_value=tmp_path, side_effect=error),
        patch.object(StopSignal, "idle", autospec=True, side_effect=StopSignal.idle) as idle,
    ):
        path, code, _ = run_digits(tmp_path, "log.report=true", "log.explain=false")
    advice = f"{pipeline_command('report', '--refresh', path)} makes its report"
    remains = "the run is complete" if made else advice
    assert code == 0 and [call.args[2] for call in idle.call_args_list[-3:]] == [
        f"after training; {advice}",
        f"after the pictures, in the wait for tensorboard, which may lack records; {remains}",
        f"after the end of the run; {remains}",
    ]


@pytest.fixture
def stopped_after_training() -> Iterator[None]:
    """Let a run get a SIGTERM once it has trained; it goes on when the thread of signals has seen it."""
    heard, receive = threading.Event(), StopSignal._receive

    def received(self: StopSignal, number: int) -> None:
        receive(self, number)
        heard.set()

    def stopped(*given: Any) -> RunResult:
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.wait(PATIENCE_S)
        return describe_result(*given)

    with (
        patch.object(StopSignal, "_receive", received),
        patch("pipeline.finalize.describe_result", stopped),
    ):
        yield


@pytest.mark.usefixtures("process_state", "stopped_after_training")
def test_no_pictures_are_told_of_where_none_were_drawn(tmp_path: Path):
    with patch.object(StopSignal, "idle", autospec=True, side_effect=StopSignal.idle) as idle:
        _, code, _ = run_digits(tmp_path)
    last = idle.call_args_list[-1].args[2]
    assert code == 0 and last.startswith("after training, in the wait for tensorboard, ")


@pytest.mark.usefixtures("process_state", "stopped_after_training")
def test_the_advice_of_a_run_that_is_stopped_after_training(tmp_path: Path):
    path, code, printed = run_digits(tmp_path, "log.report=true", "log.tensorboard=false")
    advice = pipeline_command("report", "--refresh", path)
    assert (code, printed[-2:]) == (
        0,
        [f"stopped: by SIGTERM after training; {advice} makes its report", str(path)],
    )
    assert not (path / "report.html").exists()
    words = shlex.split(advice)
    assert cli.main(words[words.index("report") :]) == 0
    assert len(Predictions.load(path).maps) and "Confusion matrix" in Page(path / "report.html").words  # pyright: ignore[reportOptionalMemberAccess]
