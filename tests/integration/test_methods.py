"""Runs with the methods that are off by default: what they record, print and save."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__ as cli
from pipeline import train
from pipeline.loop import fit
from tests.tiny import RECIPE, only_run, tiny_config, tiny_trainer


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if record["kind"] == kind]


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> tuple[Path, str]:
    """The folder of a run that evaluates mirror images too, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([str(RECIPE), f"log.dir={folder}", "duration=2ep", "evaluation.flip_tta=true", "log.tensorboard=false"]) == 0
    return only_run(folder), printed.getvalue()


def test_every_figure_with_a_flipped_view_says_so(flipped: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    run, printed = flipped
    evaluations, result = records(run, "eval"), json.loads((run / "result.json").read_text())
    for record in evaluations:
        assert record["accuracy"] == record["correct"] / record["seen"]
        assert f"({record['correct']}/8)  with flip {record['accuracy_flip_tta']:.2%}" in printed
    assert result["test_accuracy_flip_tta"] == evaluations[-1]["accuracy_flip_tta"]
    assert result["test_accuracy"] == evaluations[-1]["accuracy"]
    assert f"; with flip {result['test_accuracy_flip_tta']:.2%}; " in printed
    assert cli.main(["evaluate", str(run)]) == 0
    assert f"\nwith flip     {result['test_accuracy_flip_tta']:.4%} (" in capsys.readouterr().out


@pytest.mark.usefixtures("process_state")
def test_a_window_whose_updates_were_all_skipped_has_no_loss():
    keys = ("precision.mode=fp16", "precision.init_scale=1.0e+12", "duration=2st", "log.log_every=1st")
    trainer = tiny_trainer(tiny_config(*keys))
    fit(trainer)
    last = trainer.state.last_train
    assert (last["step"], last["skipped_steps"], last["loss"], last["accuracy"]) == (2, 2, None, None)
