"""Runs with the methods that are off by default: their records, output and files."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import __main__ as cli
from pipeline import train
from pipeline.errors import UserError
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.run.checkpoint import EMA, folder_of, load_weights, verify
from tests.tiny import RECIPE, only_run, tiny_config, tiny_trainer


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [
        record
        for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if record["kind"] == kind
    ]


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> tuple[Path, str]:
    """Return the folder and the output of a run that evaluates mirror images too."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert (
            train.main(
                [
                    str(RECIPE),
                    f"log.dir={folder}",
                    "duration=2ep",
                    "evaluation.flip_tta=true",
                    "log.tensorboard=false",
                ]
            )
            == 0
        )
    return only_run(folder), printed.getvalue()


def test_every_figure_with_a_flipped_view_says_so(
    flipped: tuple[Path, str], capsys: pytest.CaptureFixture[str]
):
    run, printed = flipped
    evaluations, result = records(run, "eval"), json.loads((run / "result.json").read_text())
    for record in evaluations:
        assert record["accuracy"] == record["correct"] / record["seen"]
        assert f"({record['correct']}/8)  with flip {record['accuracy_flip_tta']:.2%}" in printed
    assert result["test_accuracy_flip_tta"] == evaluations[-1]["accuracy_flip_tta"]
    assert result["test_accuracy"] == evaluations[-1]["accuracy"]
    assert f"; with flip {result['test_accuracy_flip_tta']:.2%}; " in printed
    assert cli.main(["evaluate", str(run)]) == 0
    assert f"\nwith flip     {result['test_accuracy_flip_tta']:.4%}\n" in capsys.readouterr().out


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> tuple[Path, str]:
    """Return the folder and the output of a run that evaluates more views of the least sure half."""
    folder = tmp_path_factory.mktemp("runs")
    keys = ("evaluation.views=mirror_shift", "evaluation.views_share=0.5", "ema.decay=0.5", "duration=2ep")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([str(RECIPE), f"log.dir={folder}", "log.report=true", *keys]) == 0
    return only_run(folder), printed.getvalue()


def test_every_figure_with_more_views_is_named_after_them(
    shifted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
):
    run, printed = shifted
    result, last = json.loads((run / "result.json").read_text()), records(run, "eval")[-1]
    key, label = "accuracy_mirror_shift_50pct", "with mirror and shift (least sure 50%)"
    for name in (key, f"ema_{key}", "accuracy"):
        assert result[f"test_{name}"] == last[name]
    average = last[f"ema_{key}"]
    for between in ("  ", "; "):  # in the line of the evaluation, and in the last one
        assert f"{between}{label} {last[key]:.2%}{between}" in printed
        assert f"{between}ema {label} {average:.2%}{between}" in printed
    events = EventAccumulator(str(run / "tb"))
    events.Reload()
    assert {f"test/{key}", f"test/ema_{key}"} <= set(events.Tags()["scalars"])
    page = (run / "report.html").read_text()
    assert f"test accuracy {label}" in page and f"test accuracy, ema {label}" in page
    assert result["best_test_accuracy"] == max(record["accuracy"] for record in records(run, "eval"))
    assert cli.main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().out
    assert f"\n{label}     {last[key]:.4%}\n" in told and f"\nema {label} {average:.4%}\n" in told


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> tuple[Path, str]:
    """Return the folder and the output of a run in fp16 with a moving average of the weights."""
    folder = tmp_path_factory.mktemp("runs")
    keys = (
        "ema.decay=0.5",
        "evaluation.flip_tta=true",
        "precision.mode=fp16",
        "precision.init_scale=1024.0",
        "log.checkpoint_every=1ep",
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([str(RECIPE), f"log.dir={folder}", *keys]) == 0
    return only_run(folder), printed.getvalue()


def test_the_average_is_evaluated_beside_the_weights(averaged: tuple[Path, str]):
    run, printed = averaged
    evaluations, result = records(run, "eval"), json.loads((run / "result.json").read_text())
    assert [record["step"] for record in evaluations] == [5, 10, 15]
    for record in evaluations:
        assert (
            f"  ema {record['ema_accuracy']:.2%}  ema with flip {record['ema_accuracy_flip_tta']:.2%}"
            in printed
        )
    last = evaluations[-1]
    for key in ("accuracy", "loss", "ema_accuracy", "ema_loss", "ema_accuracy_flip_tta", "accuracy_flip_tta"):
        assert result[f"test_{key}"] == last[key]
    assert last["ema_loss"] != last["loss"]


def test_the_average_is_saved_beside_the_weights_and_evaluated_again(
    averaged: tuple[Path, str], capsys: pytest.CaptureFixture[str]
):
    run, _ = averaged
    folder = folder_of(run / "checkpoints", 15)
    assert json.loads((folder / "manifest.json").read_text())["sha256"].keys() == {
        "weights.safetensors",
        "ema.safetensors",
        "state.pt",
    }
    weights, average = load_weights(folder), load_weights(folder, EMA)
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in average.items()
    }
    assert not torch.equal(weights["head.weight"], average["head.weight"])
    result = json.loads((run / "result.json").read_text())
    again = evaluate_run(run)
    assert again.ema is not None
    assert (again.ema.accuracy, again.ema.loss) == (result["test_ema_accuracy"], result["test_ema_loss"])
    assert cli.main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().out
    assert (
        f"\nema           {again.ema.accuracy:.4%}"
        f"\nema with flip {result['test_ema_accuracy_flip_tta']:.4%}\n" in told
    )


def test_a_damaged_average_is_found(averaged: tuple[Path, str], tmp_path: Path):
    copy = shutil.copytree(folder_of(averaged[0] / "checkpoints", 15), tmp_path / "step-00000015")
    (copy / EMA).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"ema\.safetensors: damaged"):
        verify(copy)
    (copy / EMA).unlink()
    with pytest.raises(UserError, match=r"ema\.safetensors: missing"):
        verify(copy)


@pytest.mark.usefixtures("process_state")
def test_a_window_whose_updates_were_all_skipped_has_no_loss():
    keys = ("precision.mode=fp16", "precision.init_scale=1.0e+12", "duration=2st", "log.log_every=1st")
    trainer = tiny_trainer(tiny_config(*keys))
    trainer.fit()
    last = trainer.state.last_train
    assert last is not None
    assert (last.step, last.skipped_steps, last.loss, last.accuracy) == (2, 2, None, None)
